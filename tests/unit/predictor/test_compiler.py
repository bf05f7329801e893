"""Without the compiler's own backend, which takes minutes: what is traced is run as it was traced, and counted."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import toys
from predictor.compiler import Miscompiled, compiled, repeated


class Counting:
    """A backend that compiles nothing and knows what it was asked for: graphs, and calls of the code that stands for them."""

    def __init__(self) -> None:
        self.graphs = self.calls = 0

    def __call__(self, graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., object]:
        self.graphs += 1

        def run(*arguments: object) -> object:
            self.calls += 1
            return graph(*arguments)

        return run


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("scale", torch.full((8,), 0.5))
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])  # a list within a block is the block's own

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).relu()
        return torch.tanh(self.linear(x)) * self.scale


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.ends = nn.ModuleList([nn.Linear(8, 8), nn.ReLU()])

    def forward(self, sample: Tensor, timestep: Tensor) -> tuple[Tensor, str]:
        for block in self.blocks:
            sample = block(sample) + timestep[:, None, None]
        return self.ends[0](sample), "no tensor"


@pytest.fixture(autouse=True)
def _compiler_as_found():
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


@pytest.fixture
def module() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser().requires_grad_(False)


def example(rows: int, tokens: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return {"sample": torch.randn(rows, tokens, 8, generator=generator), "timestep": torch.rand(rows, generator=generator)}


def kinds(module: nn.Module) -> set[str]:
    return {type(block).__name__ for block in repeated(module)}


def test_the_twin_has_the_same_weights_and_the_original_stays_as_it_is(module):
    backend = Counting()
    twin = compiled(module, [example(1), example(3)], backend)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        assert twin.get_parameter(name) is tensor if isinstance(tensor, nn.Parameter) else twin.get_buffer(name) is tensor
    assert type(twin) is Denoiser and twin is not module
    calls = backend.calls
    module(**example(3))
    assert backend.calls == calls


def test_other_rows_and_sizes_run_what_was_compiled(module):
    backend = Counting()
    twin = compiled(module, [example(1), example(3)], backend)
    graphs = backend.graphs
    assert graphs == 2  # for one row and for several, whatever the number of blocks
    for rows, tokens in ((1, 6), (2, 6), (5, 9), (16, 4)):
        calls = backend.calls
        with torch.no_grad():
            torch.testing.assert_close(twin(**example(rows, tokens))[0], module(**example(rows, tokens))[0])
        assert (backend.graphs, backend.calls) == (graphs, calls + 3)


def test_what_was_not_compiled_runs_as_it_is_and_is_not_compiled_then(module):
    backend = Counting()
    twin = compiled(module, [example(3)], backend)
    seen = (backend.graphs, backend.calls, counters["stats"]["unique_graphs"])
    with torch.no_grad():
        for given in (example(1), example(3, tokens=1)):
            torch.testing.assert_close(twin(**given)[0], module(**given)[0])
    assert (backend.graphs, backend.calls, counters["stats"]["unique_graphs"]) == seen


def test_it_may_be_compiled_in_another_thread(module):
    """And whether gradients are on, which is a matter of the thread, is part of what compiled code is valid for."""
    backend, twins = Counting(), []
    thread = threading.Thread(target=lambda: twins.append(compiled(module, [example(3)], backend)))
    thread.start()
    thread.join()
    calls = backend.calls
    with torch.no_grad():
        twins[0](**example(4))
    assert backend.calls == calls + 3


def test_another_module_can_be_compiled_later(module):
    compiled(module, [example(3)], Counting())
    backend = Counting()
    compiled(Denoiser().requires_grad_(False), [example(3)], backend)
    assert backend.graphs


@pytest.mark.parametrize("wrong", [1.01, float("nan")])
def test_other_results_are_refused(module, wrong):
    def backend(graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., object]:
        return lambda *arguments: tuple(output * wrong for output in graph(*arguments))

    with pytest.raises(Miscompiled, match="the compiled module differs by"):
        compiled(module, [example(3)], backend)


def test_results_of_nothing_but_zeros_are_equal(module):
    for parameter in module.parameters():
        parameter.zero_()
    compiled(module, [{"sample": torch.zeros(2, 6, 8), "timestep": torch.zeros(2)}], Counting())


def test_a_compiler_that_fails_is_a_runtime_error(module):
    def backend(_graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., object]:
        raise OSError("no space left on device")

    with pytest.raises(RuntimeError, match="no space left"):
        compiled(module, [example(3)], backend)


def test_blocks_are_what_a_denoiser_repeats(module, tmp_path):
    assert kinds(toys.unet()) == {"BasicTransformerBlock"}
    assert kinds(toys.stable_diffusion_3(tmp_path).transformer) == {"JointTransformerBlock"}
    assert [type(block) for block in repeated(module)] == [Block] * 3
    alone = Block().linear
    assert repeated(alone) == [alone]


def test_a_real_denoiser_runs_compiled():
    torch.manual_seed(0)
    unet, backend = toys.unet().requires_grad_(False), Counting()

    def sized(rows: int, side: int) -> dict[str, object]:
        text = torch.randn(rows, 7, toys.WIDTH)
        return {"sample": torch.randn(rows, 4, side, side), "timestep": torch.rand(rows), "encoder_hidden_states": text}

    twin = compiled(unet, [sized(1, 16), sized(3, 16)], backend)
    graphs = backend.graphs
    for rows, side in ((1, 12), (2, 16), (4, 20)):
        calls, given = backend.calls, sized(rows, side)
        with torch.no_grad():
            torch.testing.assert_close(twin(**given).sample, unet(**given).sample)
        assert (backend.graphs, backend.calls) == (graphs, calls + len(repeated(unet)))
