import copy
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from diffusers.configuration_utils import ConfigMixin

import toys
from fakes import Pipe, params
from predictor.rendezvous import Call, Decode, Rendezvous, StandIn, gathered, resized


def begin(rendezvous: Rendezvous, *args, **kwargs):
    guest = rendezvous.begin(lambda pipe: pipe(params(*args, **kwargs)))
    guest.proceed()
    return guest


class Bare:
    """A pipeline that calls its denoiser once, with whatever it is told to."""

    def __init__(self, denoiser: torch.nn.Module) -> None:
        self.transformer = denoiser

    def __call__(self, *args, **kwargs):
        return self.transformer(*args, **kwargs)


def call(rendezvous: Rendezvous, *args, **kwargs) -> Call:
    guest = rendezvous.begin(lambda pipe: pipe(*args, **kwargs))
    guest.proceed()
    return guest.call


# ---------------------------------------------------------------- requests


def test_requests_of_different_length_share_forwards_and_each_gets_its_own():
    pipe = Pipe()
    rendezvous = Rendezvous(pipe)
    short, long = begin(rendezvous, seed=5, num_inference_steps=2), begin(rendezvous, seed=7, num_inference_steps=4)
    while guests := [guest for guest in (short, long) if isinstance(guest.call, Call)]:
        for guest, output in zip(guests, rendezvous.forward([guest.call for guest in guests]), strict=True):
            guest.proceed(output)
    for guest in (short, long):
        guest.proceed(guest.call.run())
    assert pipe.unet.forwards == [2, 2, 1, 1]
    assert pipe.vae.calls == [1, 1]
    assert short.result.images == [10.0]
    assert long.result.images == [28.0]


def test_the_pipeline_itself_is_left_as_it_was():
    pipe = Pipe()
    before = dict(vars(pipe))
    begin(Rendezvous(pipe)).leave()
    assert vars(pipe) == before


def test_attributes_are_private_and_weights_shared():
    pipe, seen = Pipe(), []

    def run(own):
        own.scheduler = own.secret = object()
        seen.append(own)
        own(params())
        return own.secret

    rendezvous = Rendezvous(pipe)
    guests = [rendezvous.begin(run) for _ in range(2)]
    for guest in guests:
        guest.proceed()
    first, second = seen
    assert first.secret is not second.secret
    assert first.scheduler is not second.scheduler
    assert pipe.scheduler is None and not hasattr(pipe, "secret")
    assert first.unet.weight is second.unet.weight is pipe.unet.weight


class Guider(ConfigMixin):
    """As diffusers' own: it remembers."""

    config_name = "guider.json"

    def __init__(self) -> None:
        self.steps: list[int] = []


def test_whatever_remembers_steps_is_private():
    pipe = Pipe()
    pipe.guider = Guider()

    def run(own):
        own.guider.steps.append(1)
        return own.guider.steps

    guests = [Rendezvous(pipe).begin(run) for _ in range(2)]
    for guest in guests:
        guest.proceed()
    assert [guest.result for guest in guests] == [[1], [1]]
    assert pipe.guider.steps == []


def test_leaving_unwinds_the_pipeline_where_it_stands():
    unwound = []

    class Careful(Pipe):
        def __call__(self, asked):
            try:
                return super().__call__(asked)
            finally:
                unwound.append(asked.seed)

    guest = Rendezvous(Careful()).begin(lambda pipe: pipe(params(seed=3)))
    guest.proceed()
    guest.leave()
    assert unwound == [3]
    guest.leave()


def test_leaving_before_the_beginning_begins_nothing():
    begun = []
    guest = Rendezvous(Pipe()).begin(lambda pipe: begun.append(pipe))
    guest.leave()
    assert begun == []


def test_what_the_pipeline_raises_comes_out_of_proceed():
    rendezvous = Rendezvous(Pipe())
    guest = begin(rendezvous, "fails late")
    guest.proceed(*rendezvous.forward([guest.call]))
    with pytest.raises(RuntimeError):
        guest.proceed(*rendezvous.forward([guest.call]))


def test_a_pipeline_without_doors_runs_through():
    rendezvous = Rendezvous(SimpleNamespace())
    assert not rendezvous.has_doors
    guest = rendezvous.begin(lambda pipe: "done")
    guest.proceed()
    assert guest.call is None
    assert guest.result == "done"


# ---------------------------------------------------------------- doors


def test_the_stand_in_passes_for_the_module():
    pipe = Pipe()
    seen = []
    guest = Rendezvous(pipe).begin(lambda own: seen.append((isinstance(own.unet, torch.nn.Module), own.unet.config)))
    guest.proceed()
    assert seen == [(True, pipe.unet.config)]


def test_what_is_set_on_a_stand_in_is_set_on_the_original():
    """Sana sets the padding side of its tokenizer whenever it is called."""
    original = SimpleNamespace(of="the original")
    stand_in = StandIn(original)
    stand_in.of = "somebody else"
    stand_in._own = "its own"
    assert (stand_in.of, original.of, type(stand_in)) == ("somebody else", "somebody else", StandIn)
    assert not hasattr(original, "_own")
    assert isinstance(stand_in, SimpleNamespace)
    with pytest.raises(AttributeError):
        _ = stand_in.unknown


@pytest.mark.parametrize("name", ["vae", "movq"])
def test_the_decoder_has_a_door_of_its_own(name):
    """It waits there until somebody runs it, alone: with what the pipeline gave it, and with nothing to be put together by."""
    given = []

    def decode(latents, *, generator):
        given.append((latents, generator))
        return "picture"

    pipe = SimpleNamespace(**{name: SimpleNamespace(decode=decode, config="config")})
    rendezvous = Rendezvous(pipe)
    assert rendezvous.has_doors and not hasattr(rendezvous, "denoiser")
    guest = rendezvous.begin(lambda own: (getattr(own, name).config, getattr(own, name).decode("latents", generator="g")))
    guest.proceed()
    assert isinstance(guest.call, Decode)
    assert given == []
    guest.proceed(guest.call.run())
    assert given == [("latents", "g")]
    assert guest.result == ("config", "picture")
    assert guest.call is None


def test_what_decoding_raises_is_for_whoever_runs_it():
    def decode(latents):
        raise torch.OutOfMemoryError

    guest = Rendezvous(SimpleNamespace(vae=SimpleNamespace(decode=decode))).begin(lambda own: own.vae.decode("latents"))
    guest.proceed()
    with pytest.raises(torch.OutOfMemoryError):
        guest.call.run()
    assert isinstance(guest.call, Decode)  # still there: it may be tried again
    guest.leave()


def test_a_part_that_cannot_decode_has_no_door():
    assert not Rendezvous(SimpleNamespace(vae=None)).has_doors
    assert not Rendezvous(SimpleNamespace(unet=None, transformer="no module")).has_doors


# ---------------------------------------------------------------- who can share


def test_calls_with_other_sizes_or_flags_have_other_keys():
    rendezvous = Rendezvous(Pipe())
    small, large = begin(rendezvous), begin(rendezvous, width=128)
    same = begin(rendezvous, seed=99, num_images_per_prompt=3)
    assert small.call.key != large.call.key
    assert small.call.key == same.call.key
    assert (small.call.rows, same.call.rows) == (1, 3)


class Flagged(torch.nn.Module):
    def forward(self, sample, timestep, flag=None, extra=None):
        return sample


@pytest.mark.parametrize(
    "other",
    [
        {"flag": True},
        {"flag": "mode"},
        {"extra": {"scale": 2.0}},
        {"extra": {"strength": 1.0}},
        {"extra": {"scale": 1.0, "more": None}},
        {"extra": [torch.zeros(2, 1)]},
        {"sample": torch.zeros(2, 4, dtype=torch.float16)},
        {"sample": torch.zeros(2, 5)},
    ],
)
def test_whatever_the_denoiser_could_tell_from_its_arguments_is_in_the_key(other):
    rendezvous = Rendezvous(Bare(Flagged()))
    plain = {"sample": torch.zeros(2, 4), "timestep": 1, "flag": False, "extra": {"scale": 1.0}}
    assert call(rendezvous, **plain).key == call(rendezvous, **copy.deepcopy(plain)).key
    assert call(rendezvous, **plain).key != call(rendezvous, **(plain | other)).key


def test_arguments_may_be_named_or_not():
    rendezvous = Rendezvous(Bare(Flagged()))
    named = call(rendezvous, sample=torch.zeros(2, 4), timestep=1, flag="mode")
    assert call(rendezvous, torch.zeros(2, 4), 1, "mode").key == named.key


class WithIds(torch.nn.Module):
    def forward(self, sample, ids):
        return sample


def test_tensors_without_rows_are_compared_by_value():
    rendezvous = Rendezvous(Bare(WithIds()))
    ids = torch.arange(6.0).reshape(3, 2).to(torch.bfloat16)
    first, same, other = (call(rendezvous, torch.zeros(2, 1), ids=value).key for value in (ids, ids.clone(), ids + 1))
    assert first == same != other


@pytest.mark.parametrize("ids", [torch.tensor(1.5), torch.tensor([True, False, True]), torch.zeros(0, 3), torch.ones(3, 2).T])
def test_tensors_of_any_kind_can_be_compared(ids):
    """Without dimensions, of truth values, empty, not contiguous."""
    rendezvous = Rendezvous(Bare(WithIds()))
    assert call(rendezvous, torch.zeros(5, 1), ids=ids).key == call(rendezvous, torch.zeros(5, 1), ids=ids.clone()).key


def test_ids_for_one_row_and_for_all_are_not_confused():
    """[1, …] with one row belongs to that row; with two it belongs to both. Put together, there would be three rows of ids
    for some and one for others."""
    rendezvous = Rendezvous(Bare(WithIds()))
    ids = torch.zeros(1, 7, 3)
    assert call(rendezvous, torch.zeros(1, 1), ids=ids).key != call(rendezvous, torch.zeros(2, 1), ids=ids).key


def test_in_a_list_of_positions_none_has_rows_or_all_have():
    """[frames, height, width] of one row: the one frame is not that row."""
    rendezvous = Rendezvous(Bare(WithIds()))
    positions, residuals = [torch.arange(1), torch.arange(8), torch.arange(4)], [torch.zeros(1, 5), torch.zeros(1, 6)]
    assert call(rendezvous, torch.zeros(1, 1), ids=positions).rowwise == (True, False, False, False)
    assert call(rendezvous, torch.zeros(1, 1), ids=residuals).rowwise == (True, True, True)


def test_a_tensor_that_is_written_into_is_another():
    rendezvous = Rendezvous(Bare(WithIds()))
    ids = torch.zeros(3, 2)
    before = call(rendezvous, torch.zeros(2, 1), ids=ids).key
    ids += 1
    assert call(rendezvous, torch.zeros(2, 1), ids=ids).key != before


# ---------------------------------------------------------------- timesteps


@pytest.mark.parametrize("name", ["timestep", "timesteps", "t"])
def test_one_timestep_for_all_becomes_one_for_each_row(name):
    """By whatever name, from whatever sampler: so can calls at different steps share."""
    namespace: dict = {"torch": torch}
    exec(f"class Denoiser(torch.nn.Module):\n    def forward(self, sample, {name}): return sample + {name}[:, None]", namespace)
    rendezvous = Rendezvous(Bare(namespace["Denoiser"]()))
    given = [torch.tensor(7), torch.tensor(7.5), 3, 0.25, torch.tensor([4.0]), torch.tensor([5, 6])]
    calls = [call(rendezvous, torch.zeros(2, 1), **{name: timestep}) for timestep in given]
    assert len({each.key for each in calls}) == 1
    outputs = [output.flatten().tolist() for output in rendezvous.forward(calls)]
    assert outputs == [[7, 7], [7.5, 7.5], [3, 3], [0.25, 0.25], [4, 4], [5, 6]]


def test_a_timestep_for_each_half_is_spread_over_its_rows():
    """Guidance doubles the rows of two pictures; some pipelines double one timestep."""
    rendezvous = Rendezvous(Bare(Flagged()))
    found = call(rendezvous, torch.zeros(4, 1), torch.tensor([5.0, 6.0]))
    assert [leaf.tolist() for leaf in found.leaves if isinstance(leaf, torch.Tensor)][1] == [5, 5, 6, 6]


def test_a_timestep_for_each_token_stays_as_it_is():
    rendezvous = Rendezvous(Bare(Flagged()))
    by_token = torch.rand(2, 7)
    assert any(leaf is by_token for leaf in call(rendezvous, torch.zeros(2, 7, 1), by_token).leaves)


@pytest.mark.parametrize("timestep", [3, torch.tensor(3), torch.tensor([3.0, 4.0])])
def test_what_lies_elsewhere_is_brought_to_where_the_latents_are(timestep):
    """Private samplers keep timesteps on the CPU. ("meta" stands for a GPU.)"""
    latents, lists = torch.zeros(2, 1, device="meta"), [torch.zeros(3, 1, device="meta")] * 2
    for sample in (latents, lists):
        found = call(Rendezvous(Bare(Flagged())), sample, timestep, extra={"scale": torch.ones(2, 1)})
        tensors = [leaf for leaf in found.leaves if isinstance(leaf, torch.Tensor)]
        assert len(tensors) >= 2
        assert {tensor.device.type for tensor in tensors} == {"meta"}


# ---------------------------------------------------------------- together


def test_rows_of_all_calls_lie_in_order():
    rendezvous = Rendezvous(Bare(Flagged()))
    calls = [call(rendezvous, torch.full((rows, 1), float(rows)), 0) for rows in (2, 1, 3)]
    together = gathered(calls)
    assert together.rows == 6
    assert together.key == calls[0].key
    assert together.leaves[0].flatten().tolist() == [2, 2, 1, 3, 3, 3]
    assert gathered(calls[:1]) is calls[0]


@pytest.mark.parametrize(
    ("rows", "expected"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 3, 1]), (7, [1, 2, 3, 1, 2, 3, 1])]
)
def test_a_call_can_have_any_number_of_rows(rows, expected):
    rendezvous = Rendezvous(Bare(Flagged()))
    tensors = call(rendezvous, torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([10, 20, 30]), flag=True)
    lists = call(rendezvous, [torch.tensor([value]) for value in (1.0, 2.0, 3.0)], 5)
    for found in (resized(tensors, rows), resized(lists, rows)):
        assert found.rows == rows
        assert [float(row) for row in found.leaves[0]] == expected
        assert len(found.leaves[1]) == rows
    assert resized(tensors, rows).leaves[1].tolist() == [10 * value for value in expected]
    assert [leaf for leaf in resized(tensors, rows).leaves if leaf is True] == [True]


def test_rows_that_nobody_wants_come_back_to_nobody():
    pipe = Pipe()
    rendezvous = Rendezvous(pipe)
    one, three = begin(rendezvous, seed=5), begin(rendezvous, seed=7, num_images_per_prompt=3)
    (first,), (second,) = rendezvous.forward([one.call, three.call], least_rows=10)
    assert pipe.unet.forwards == [10]
    assert (len(first), len(second)) == (1, 3)
    assert first.eq(5).all() and second.eq(7).all()


def test_a_forward_that_has_rows_enough_gets_no_more():
    pipe = Pipe()
    rendezvous = Rendezvous(pipe)
    rendezvous.forward([begin(rendezvous, num_images_per_prompt=3).call], least_rows=2)
    assert pipe.unet.forwards == [3]


class Several(torch.nn.Module):
    """Returns rows in a structure, and beside them what has none."""

    def forward(self, sample, timestep):
        return {"sample": sample, "more": (sample + 1, "text"), "shared": torch.arange(9)}


def test_whatever_the_denoiser_returns_is_split():
    rendezvous = Rendezvous(Bare(Several()))
    calls = [call(rendezvous, torch.full((rows, 2), float(rows)), 0) for rows in (1, 3)]
    first, second = rendezvous.forward(calls)
    assert first["sample"].tolist() == [[1, 1]]
    assert second["sample"].tolist() == [[3, 3]] * 3
    assert (len(first["more"][0]), first["more"][1], len(second["more"][0])) == (1, "text", 3)
    assert len(first["shared"]) == len(second["shared"]) == 9


# ---------------------------------------------------------------- lists of rows


class Listed(torch.nn.Module):
    """Takes a list of latents and a list of texts, of a length each, and returns such a list: as Z-Image does."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards: list[list[tuple[int, ...]]] = []

    def forward(self, x: list, t: torch.Tensor, cap_feats: list, return_dict: bool = True) -> tuple:
        assert len(x) == len(t) == len(cap_feats)
        self.forwards.append([(*row.shape, len(text)) for row, text in zip(x, cap_feats, strict=True)])
        return ([row + time + text.sum() for row, time, text in zip(x, t, cap_feats, strict=True)],)


def listed(rendezvous: Rendezvous, value: float, *texts: int, shape=(4, 1, 6, 8)) -> Call:
    """A row for each of `texts`, which are so long."""
    latents = [torch.full(shape, value + i) for i in range(len(texts))]
    return call(rendezvous, latents, torch.tensor(0.5), [torch.ones(length, 2) for length in texts], return_dict=False)


def test_lists_are_gathered_and_split_row_by_row():
    pipe = Bare(Listed())
    rendezvous = Rendezvous(pipe)
    calls = [listed(rendezvous, 10.0, 3, 5), listed(rendezvous, 20.0, 1), listed(rendezvous, 30.0, 2, 2, 2)]
    assert len({each.key for each in calls}) == 1
    assert [each.rows for each in calls] == [2, 1, 3]
    outputs = rendezvous.forward(calls)
    assert pipe.transformer.forwards == [[(4, 1, 6, 8, length) for length in (3, 5, 1, 2, 2, 2)]]
    values = [[row.unique().item() for row in rows] for (rows,) in outputs]
    assert values == [[16.5, 21.5], [22.5], [34.5, 35.5, 36.5]]


@pytest.mark.parametrize("texts", [(3,), (3, 5)])
def test_a_call_of_lists_that_is_alone_gets_its_list(texts):
    rendezvous = Rendezvous(Bare(Listed()))
    [(rows,)] = rendezvous.forward([listed(rendezvous, 1.0, *texts)])
    assert [row.shape for row in rows] == [(4, 1, 6, 8)] * len(texts)


def test_lists_are_filled_up_with_rows_that_come_back_to_nobody():
    pipe = Bare(Listed())
    rendezvous = Rendezvous(pipe)
    [(first,), (second,)] = rendezvous.forward([listed(rendezvous, 10.0, 3), listed(rendezvous, 20.0, 4, 5)], least_rows=7)
    assert [text for *_, text in pipe.transformer.forwards[0]] == [3, 4, 5, 3, 4, 5, 3]
    assert [row.unique().item() for row in (*first, *second)] == [16.5, 28.5, 31.5]


def test_rows_of_lists_may_differ_in_length_but_not_in_kind():
    rendezvous = Rendezvous(Bare(Listed()))
    one = listed(rendezvous, 1.0, 3)
    assert listed(rendezvous, 1.0, 3, shape=(4, 1, 12, 8)).key == one.key
    assert listed(rendezvous, 1.0, 3, shape=(4, 1, 6, 16)).key != one.key
    half = call(rendezvous, [torch.zeros(4, 1, 6, 8).half()], torch.tensor(0.5), [torch.ones(3, 2)], return_dict=False)
    assert half.key != one.key


# ---------------------------------------------------------------- a real denoiser


# ---------------------------------------------------------------- texts of any length


class Masked(torch.nn.Module):
    """Adds to each row the sum of its text, as far as the mask lets it; remembers what texts and masks it was given."""

    def forward(self, sample, timestep, text, text_mask=None):
        self.seen = text.clone(), text_mask
        heard = text if text_mask is None else text * text_mask[..., None]
        return sample + heard.sum((1, 2))[:, None]


def texts(rendezvous: Rendezvous, *lengths: int, **mask) -> list[Call]:
    return [
        call(rendezvous, torch.zeros(rows, 1), torch.tensor(0), text=torch.full((rows, length, 2), float(length)), **mask)
        for rows, length in enumerate(lengths, 1)
    ]


def test_shorter_texts_are_filled_up_where_there_is_a_mask():
    denoiser = Masked()
    rendezvous = Rendezvous(Bare(denoiser))
    short, long = texts(rendezvous, 3, 5)
    assert short.key == long.key
    outputs = rendezvous.forward([short, long])
    assert [output.tolist() for output in outputs] == [[[18.0]], [[50.0], [50.0]]]
    text, mask = denoiser.seen
    assert text.shape == (3, 5, 2) and not text[0, 3:].any()
    assert mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5, [True] * 5]


def test_texts_of_one_length_need_no_mask():
    denoiser = Masked()
    rendezvous = Rendezvous(Bare(denoiser))
    rendezvous.forward(texts(rendezvous, 4, 4))
    assert denoiser.seen[1] is None


def test_masks_that_are_there_are_filled_up_as_they_are():
    denoiser = Masked()
    rendezvous = Rendezvous(Bare(denoiser))
    [short] = texts(rendezvous, 2, text_mask=torch.tensor([[1, 0]]))
    [long] = texts(rendezvous, 3, text_mask=torch.tensor([[1, 1, 1]]))
    outputs = rendezvous.forward([short, long])
    assert denoiser.seen[1].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert [output.item() for output in outputs] == [4.0, 18.0]


def test_a_mask_and_none_are_not_confused():
    rendezvous = Rendezvous(Bare(Masked()))
    [with_mask], [without] = texts(rendezvous, 2, text_mask=torch.tensor([[1, 0]])), texts(rendezvous, 2)
    assert with_mask.key != without.key


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return toys.unet(sample_size=8).eval()


def seeded(rendezvous: Rendezvous, seed: int, rows: int = 1) -> Call:
    noise = torch.Generator().manual_seed(seed)
    latents, text = torch.randn(rows, 4, 8, 8, generator=noise), torch.randn(rows, 5, toys.WIDTH, generator=noise)
    return call(rendezvous, latents, torch.tensor(37 * seed), encoder_hidden_states=text, return_dict=False)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Several divide the rows among them, and the last few of a thread go through another kernel: then the place of a row in
    the batch shows in its last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@torch.no_grad()
def test_with_as_many_rows_company_changes_no_bit(unet, one_thread):
    rendezvous = Rendezvous(Bare(unet))
    mine = seeded(rendezvous, 1)
    [(alone,)] = rendezvous.forward([mine], least_rows=6)
    two, three, four = seeded(rendezvous, 2), seeded(rendezvous, 3, rows=2), seeded(rendezvous, 4, rows=2)
    for before, after in (([], [two, three, four]), ([two, three, four], []), ([three], [two]), ([four], [])):
        outputs = rendezvous.forward([*before, mine, *after], least_rows=6)
        assert torch.equal(outputs[len(before)][0], alone)


@torch.no_grad()
def test_company_changes_no_more_than_rounding_does(unet):
    rendezvous = Rendezvous(Bare(unet))
    calls = [seeded(rendezvous, 1), seeded(rendezvous, 2, rows=2), seeded(rendezvous, 3)]
    together = rendezvous.forward(calls)
    for own, (output,) in zip(calls, together, strict=True):
        [(alone,)] = rendezvous.forward([own])
        assert torch.allclose(output, alone, atol=1e-5)
        assert output.std() > 0.01  # the random weights do say something
