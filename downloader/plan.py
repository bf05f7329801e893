"""Which files of a repository make the pipeline. Pure: a listing goes in, a `Plan` or a refusal comes out.

`model_index.json` names the components; each is a directory of its own. From a component come

- its small files, by an allow-list of suffixes: configurations, vocabularies, merges, templates. Never code, pictures
  or any format of weights;
- if it is a model, its safetensors: named `diffusion_pytorch_model` or `model`, of the asked variant if the component
  has it, else without variant; one file before shards; shards exactly as the index lists them.

Whatever `model_index.json` does not name stays out: SDXL's repository is 75 GB, of which this takes 6.94.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from downloader.errors import PlanRefused

MODEL_INDEX = "model_index.json"
# Read whole while planning; the largest real index (thousands of tensors) is under 1 MB.
LARGEST_INDEX = 16 * 2**20
# The largest tokenizer.json in use is 34 MB.
LARGEST_SMALL_FILE = 64 * 2**20

_SMALL = (".json", ".jsonl", ".txt", ".model", ".jinja", ".bpe", ".tiktoken", ".spm", ".vocab")
_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack", ".h5", ".onnx", ".gguf")
# Classes that have no weights of their own, by what their names end in. Everything else with a config.json is a model.
_WEIGHTLESS = ("Tokenizer", "TokenizerFast", "Scheduler", "Processor", "ProcessorFast", "FeatureExtractor")
# Modules of diffusers.pipelines that model_index.json may name in place of a library (SD 1.5's safety checker lives in
# one). Listed because the downloader's image has no diffusers to ask.
_PIPELINE_MODULES = frozenset(
    "stable_diffusion deepfloyd_if flux kandinsky kolors latent_diffusion ltx ltx2 stable_cascade wuerstchen "
    "paint_by_example stable_diffusion_safe unclip".split()
)
_MAY_NAME_CODE = ("config.json", "tokenizer_config.json")
_LIBRARIES = frozenset({"diffusers", "transformers"}) | _PIPELINE_MODULES


@dataclass(frozen=True)
class File:
    """One file to fetch. `path` is relative, with `/`; `size` in bytes.

    One of the hashes is known beforehand: `sha256` for large (LFS) files and local ones, `blob_sha1` (git's, over
    `blob <size>\\0` and the content) for the small files of a Hub repository.
    """

    path: str
    size: int
    sha256: str | None = None
    blob_sha1: str | None = None


@dataclass(frozen=True)
class Plan:
    pipeline: str  # the class in model_index.json
    files: tuple[File, ...]  # sorted by path

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def make_plan(listing: Iterable[File], read: Callable[[File], bytes], variant: str | None = None) -> Plan:
    """Choose the files of the pipeline in `listing`.

    Args:
        listing: every file of the repository.
        read: returns the content of a small one; called for `model_index.json`, the configurations that could name code,
            and the indices of shards.
        variant: "fp16" and the like; a component without it falls back to its plain weights.

    Raises:
        PlanRefused: with the sentence for the operator.
    """
    files = {file.path: file for file in listing}
    if MODEL_INDEX not in files:
        raise PlanRefused(f"no {MODEL_INDEX}: this is not a diffusers pipeline (a single checkpoint cannot be served)")
    index = _object(files[MODEL_INDEX], read)
    pipeline = _pipeline_class(index)
    chosen, varied = [files[MODEL_INDEX]], False
    for name, library, class_name in _components(index):
        beside = {path.removeprefix(f"{name}/"): file for path, file in files.items() if path.startswith(f"{name}/")}
        component = _Component(name, library, class_name, {key: file for key, file in beside.items() if _plain(key)})
        component.refuse_code(read)
        weights, has_variant = component.weights(read, variant) if component.is_model() else ([], False)
        taken = component.small_files() + weights
        if not taken:
            raise PlanRefused(f"component {name} ({class_name}) has no files")
        chosen += taken
        varied = varied or has_variant
    if variant is not None and not varied:
        raise PlanRefused(f"no component has safetensors of variant {variant!r}; ask without --variant, or for another")
    return Plan(pipeline, tuple(sorted(chosen, key=lambda file: file.path)))


@dataclass(frozen=True)
class _Component:
    name: str
    library: str
    class_name: str
    files: Mapping[str, File]  # by basename

    def is_model(self) -> bool:
        if self.class_name.endswith(_WEIGHTLESS):
            return False
        return any(name == "config.json" or name.endswith(_WEIGHTS) for name in self.files)

    def refuse_code(self, read: Callable[[File], bytes]) -> None:
        for config in filter(None, map(self.files.get, _MAY_NAME_CODE)):
            if key := _names_code(_object(config, read)):
                raise PlanRefused(f"custom code: {config.path} names some under {key!r}")

    def small_files(self) -> list[File]:
        return [
            file
            for name, file in self.files.items()
            # An index belongs to its weights: taken without its shards it would send a loader after what is not there.
            if name.endswith(_SMALL) and ".index." not in name and file.size <= LARGEST_SMALL_FILE
        ]

    def weights(self, read: Callable[[File], bytes], variant: str | None) -> tuple[list[File], bool]:
        """The safetensors to take, and whether they are of `variant`."""
        if "config.json" not in self.files:
            raise PlanRefused(f"component {self.name} ({self.class_name}) has weights but no config.json")
        for wanted in [variant, None] if variant else [None]:
            for stem in self._stems():
                single = self.files.get(f"{stem}.{wanted}.safetensors" if wanted else f"{stem}.safetensors")
                if single is not None:
                    return [single], wanted is not None
            for stem in self._stems():
                for index in filter(None, map(self.files.get, _index_names(stem, wanted))):
                    return [index, *self._shards(index, read)], wanted is not None
        raise PlanRefused(self._no_safetensors())

    def _stems(self) -> tuple[str, ...]:
        stems = ("diffusion_pytorch_model", "model")
        return stems if self.library == "diffusers" else stems[::-1]

    def _shards(self, index: File, read: Callable[[File], bytes]) -> list[File]:
        weight_map = _object(index, read).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise PlanRefused(f"{index.path} has no weight_map")
        shards = []
        for shard in sorted({value if isinstance(value, str) else repr(value) for value in weight_map.values()}):
            # An index is data from a stranger that a loader joins to a directory: `../../x` would leave it.
            if not _plain(shard) or not shard.endswith(".safetensors"):
                raise PlanRefused(f"{index.path} names {shard!r}: a shard must be a plain .safetensors name beside it")
            if shard not in self.files:
                raise PlanRefused(f"{index.path} names {shard!r}, which the repository does not have")
            shards.append(self.files[shard])
        return shards

    def _no_safetensors(self) -> str:
        have = sorted(name for name in self.files if name.endswith(_WEIGHTS))
        found = f"only {', '.join(have[:4])}" if have else "no weights at all"
        return (
            f"component {self.name} has no safetensors, {found}; pickled weights run code when loaded and are never "
            "taken: convert the model, or choose a revision or variant that has safetensors"
        )


def _index_names(stem: str, variant: str | None) -> tuple[str, ...]:
    if variant is None:
        return (f"{stem}.safetensors.index.json",)
    # Today's spelling, and the one diffusers wrote before 0.30.
    return f"{stem}.safetensors.index.{variant}.json", f"{stem}.safetensors.{variant}.index.json"


def _names_code(config: object) -> str | None:
    """The key of a transformers configuration that names code: a module of the repository, or a kernel to fetch."""
    if not isinstance(config, dict):
        return None
    for key, value in config.items():
        if key == "auto_map" or ("attn_implementation" in key and "/" in str(value)):
            return str(key)
        if nested := _names_code(value):
            return nested
    return None


def _plain(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_][\w.+=@ -]*", name, re.ASCII) is not None and ".." not in name


def _object(file: File, read: Callable[[File], bytes]) -> dict[str, object]:
    if file.size > LARGEST_INDEX:
        raise PlanRefused(f"{file.path} has {file.size} bytes; an index has at most {LARGEST_INDEX}")
    try:
        value = json.loads(read(file))
    except (ValueError, RecursionError) as error:
        raise PlanRefused(f"{file.path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise PlanRefused(f"{file.path} is not a JSON object")
    return value


def _pipeline_class(index: Mapping[str, object]) -> str:
    class_name = index.get("_class_name")
    # A list here is `[file in the repository, class]`: custom code.
    if not isinstance(class_name, str) or not re.fullmatch(r"[A-Z]\w*Pipeline", class_name, re.ASCII):
        raise PlanRefused(f"custom code: {MODEL_INDEX} has _class_name {class_name!r}, not a pipeline of diffusers")
    return class_name


def _components(index: Mapping[str, object]) -> list[tuple[str, str, str]]:
    """(name, library, class) of every component that is there. `[null, null]` marks one left out on purpose."""
    found = []
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or len(value) != 2:
            continue
        library, class_name = value
        if library is None or class_name is None:
            continue
        if not isinstance(library, str) or not isinstance(class_name, str):
            continue  # a plain setting, such as a pair of numbers
        if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
            raise PlanRefused(f"{MODEL_INDEX} has a component named {name!r}; a name is letters, digits and _")
        if library not in _LIBRARIES:
            raise PlanRefused(f"custom code: component {name} is {class_name} of {library!r}, not of diffusers")
        found.append((name, library, class_name))
    if not found:
        raise PlanRefused(f"{MODEL_INDEX} names no components")
    return found
