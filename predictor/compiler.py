"""A denoiser's compiled twin: the same weights, other code. For who asks for it (--compile).

The blocks that a denoiser repeats are compiled, not the denoiser as a whole: one compilation serves all blocks of a kind, so
that it takes seconds or a minute where the whole takes many. Sizes stay symbols (dynamic=True): a picture of another size or
a batch of other rows runs the same code. What the examples did not cover runs uncompiled: nothing is ever compiled on the way
of a request.

The compiler is no neighbour for a compiled module (a process must not run one while it compiles another) and a noisy one for
an eager module: it holds the interpreter (tests/bench/compiling.py).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, ModuleList
from torch.utils._pytree import tree_leaves

# Of the length of the difference to that of the right answer. Fusing keeps more digits than rounding after every operation:
# the two differ by a few units in the last place for each block; a wrong answer differs by about 1.
_TOLERANCES = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}


class Miscompiled(RuntimeError):
    """The compiled module computes something else."""


def compiled(module: Module, inputs: Sequence[Mapping[str, Any]], backend: str | Callable[..., Any] = "inductor") -> Module:
    """A twin of `module` on the same parameters and buffers; `module` itself is left as it is and may be at work meanwhile.

    `inputs`: keyword arguments of `forward`. One row and several rows are two compilations, so there should be an example of
    each. Blocks until all are done. Raises RuntimeError when it cannot be compiled, Miscompiled when the results differ.

    From then on the process compiles nothing: torch.compile has one stance for all threads.
    """
    twin = copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})
    for region in repeated(twin):
        region.compile(dynamic=True, backend=backend)
    # Whether gradients are on belongs to what compiled code is valid for, and to the thread.
    with torch.no_grad(), torch.compiler.set_stance("default"):
        for example in inputs:
            _compare(module(**example), twin(**example))
    torch.compiler.set_stance("eager_on_recompile")
    return twin


def repeated(module: Module) -> list[Module]:
    """The blocks that a denoiser is built of: those its class names, or else the members of lists that hold several of a
    kind, the outermost. A module without any is one block."""
    names = getattr(module, "_repeated_blocks", None)
    named = [block for block in module.modules() if type(block).__name__ in names] if names else []
    return named or _listed(module) or [module]


def _listed(module: Module) -> list[Module]:
    blocks: list[Module] = []
    for child in module.children():
        kinds = Counter(map(type, child if isinstance(child, ModuleList) else ()))
        for member in child if isinstance(child, ModuleList) else (child,):
            blocks += [member] if kinds[type(member)] > 1 else _listed(member)
    return blocks


def _compare(right: Any, got: Any) -> None:
    for expected, actual in zip(tree_leaves(right), tree_leaves(got), strict=True):
        if not isinstance(expected, Tensor):
            continue
        difference, size = (float(each.float().norm()) for each in (actual - expected, expected))
        most = _TOLERANCES.get(expected.dtype, min(_TOLERANCES.values()))
        if not difference <= most * size:  # nor when it is not a number
            raise Miscompiled(f"the compiled module differs by {difference:.1e} in {size:.1e}, by more than {most:.0e} of it")
