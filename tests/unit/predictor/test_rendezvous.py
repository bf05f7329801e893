import pytest
import torch

from fakes import Pipe, params
from predictor.rendezvous import Rendezvous


def begin(rendezvous: Rendezvous, *args, **kwargs):
    guest = rendezvous.begin(lambda pipe: pipe(params(*args, **kwargs)))
    guest.proceed()
    return guest


def test_requests_of_different_length_share_forwards_and_each_gets_its_own():
    pipe = Pipe()
    rendezvous = Rendezvous(pipe)
    short, long = begin(rendezvous, seed=5, num_inference_steps=2), begin(rendezvous, seed=7, num_inference_steps=4)
    while guests := [guest for guest in (short, long) if guest.call]:
        for guest, output in zip(guests, rendezvous.forward([guest.call for guest in guests]), strict=True):
            guest.proceed(output)
    assert pipe.unet.forwards == [2, 2, 1, 1]
    assert short.result.images == [10.0]
    assert long.result.images == [28.0]


def test_the_pipeline_itself_is_left_as_it_was():
    pipe = Pipe()
    before = dict(vars(pipe))
    begin(Rendezvous(pipe)).leave()
    assert vars(pipe) == before


def test_calls_with_other_sizes_or_flags_have_other_keys():
    rendezvous = Rendezvous(Pipe())
    small, large = begin(rendezvous), begin(rendezvous, width=128)
    same = begin(rendezvous, seed=99, num_images_per_prompt=3)
    assert small.call.key != large.call.key
    assert small.call.key == same.call.key
    assert (small.call.rows, same.call.rows) == (1, 3)


def test_tensors_without_rows_are_compared_by_value():
    class WithIds(torch.nn.Module):
        def forward(self, sample, ids):
            return sample

    class Ids:
        def __init__(self):
            self.transformer = WithIds()

        def __call__(self, ids):
            return self.transformer(torch.zeros(2, 1), ids=ids)

    rendezvous = Rendezvous(Ids())
    ids = torch.arange(6.0).reshape(3, 2).to(torch.bfloat16)
    keys = []
    for value in (ids, ids.clone(), ids + 1):
        guest = rendezvous.begin(lambda pipe, value=value: pipe(value))
        guest.proceed()
        keys.append(guest.call.key)
    assert keys[0] == keys[1] != keys[2]


def test_integer_and_float_timesteps_share():
    class Toy:
        def __init__(self):
            self.unet = Pipe().unet

        def __call__(self, timestep):
            return self.unet(torch.zeros(1, 1), timestep, torch.ones(1, 1))

    rendezvous = Rendezvous(Toy())
    guests = [rendezvous.begin(lambda pipe, t=t: pipe(t)) for t in (torch.tensor(7), torch.tensor(7.5), 3, torch.tensor([4.0]))]
    for guest in guests:
        guest.proceed()
    assert len({guest.call.key for guest in guests}) == 1


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


def test_what_the_pipeline_raises_comes_out_of_proceed():
    rendezvous = Rendezvous(Pipe())
    guest = begin(rendezvous, "fails late")
    guest.proceed(*rendezvous.forward([guest.call]))
    with pytest.raises(RuntimeError):
        guest.proceed(*rendezvous.forward([guest.call]))


def test_a_pipeline_without_a_denoiser_runs_through():
    guest = Rendezvous(object()).begin(lambda pipe: "done")
    guest.proceed()
    assert guest.call is None
    assert guest.result == "done"


def test_the_stand_in_passes_for_the_module():
    pipe = Pipe()
    seen = []
    guest = Rendezvous(pipe).begin(lambda own: seen.append((isinstance(own.unet, torch.nn.Module), own.unet.config)))
    guest.proceed()
    assert seen == [(True, pipe.unet.config)]
