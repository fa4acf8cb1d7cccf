"""Any Hugging Face decoder or encoder on torch, on CPU or GPU."""

from __future__ import annotations

import inspect
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from searchkit.errors import InputError
from searchkit.models.conventions import MODULES, Conventions
from searchkit.models.dense import DenseLayers
from searchkit.models.pooling import POOLINGS

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "bfloat16", "float16")
_LEAST_SHARED, _LEAST_TEXTS = 8, 4  # below, the second pass through the model costs more than is saved
BASE_CONFIG = "base_config.json"  # beside an adapter: overrides for its base's config.json


class TorchRuntime:
    """Token ids in, pooled float32 vectors out.

    Args:
        folder: Local folder of a transformers model.
        adapter: Local folder of a PEFT adapter trained on it, or None.
        device: "cpu", "cuda", "cuda:1", "mps", or None for the best available.
        dtype: One of :data:`DTYPES`; "auto" picks bfloat16 where the hardware is fast at it.
        threads: CPU threads of torch, and so of every model in the process; None leaves them unchanged.
        own_code: Run Python code that the folder brings.

    Attributes:
        share_beginnings: Compute the tokens that all texts of a batch begin with once, such as the instruction of many
            queries; for decoders that pool at the last token.

    Raises:
        InputError: The folder, the adapter or the device cannot be used; the message says what to change.
    """

    def __init__(
        self,
        folder: Path,
        adapter: Path | None,
        device: str | None,
        dtype: str,
        threads: int | None = None,
        own_code: bool = False,
    ) -> None:
        import torch
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        self.own_code = own_code
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = torch_device((device or best_device()).partition(",")[0])  # FAISS may use several
        self.dtype = choose_dtype(self.device.type) if dtype == "auto" else dtype
        self.most_texts = 1 << 30
        self.share_beginnings = True
        self.workers = 1  # torch uses all cores within a forward pass
        # A GPU wants large batches; on a CPU they should stay in its caches.
        self.token_budget = {"cuda": 65536, "cpu": 1024}.get(self.device.type, 4096)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=own_code)
        if adapter is not None and (adapter / BASE_CONFIG).is_file():
            config.update(json.loads((adapter / BASE_CONFIG).read_text("utf-8")))
        self.decoder = is_decoder(config)
        positions = getattr(config, "max_position_embeddings", None)
        self.longest = int(positions) if positions else None
        tokenizer_folder = adapter if adapter is not None and (adapter / MODULES).is_file() else folder
        self.dense = DenseLayers(tokenizer_folder, int(config.get_text_config().hidden_size), self.device)
        self.hidden_size = self.dense.width
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, config=config, trust_remote_code=own_code)
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(
                f"{folder} has no tokenizer.json; save one with AutoTokenizer.from_pretrained(..., use_fast=True)"
                ".save_pretrained(folder)"
            )
        self.tokenizer: Tokenizer = tokenizer.backend_tokenizer
        # From the file: transformers 5 drops the flag if tokenizer.json does not implement it.
        settings = tokenizer_folder / "tokenizer_config.json"
        wants_bos = settings.is_file() and json.loads(settings.read_text("utf-8")).get("add_bos_token")
        self.bos_id: int | None = tokenizer.bos_token_id if wants_bos else None
        self.eos_id: int | None = tokenizer.eos_token_id
        with quiet():
            self.model: Any
            self.model, loaded = AutoModel.from_pretrained(
                folder,
                config=config,
                dtype=getattr(torch, self.dtype),
                output_loading_info=True,
                trust_remote_code=own_code,
            )
        # The pooler is not used here, and sentence-transformers folders often lack it.
        missing = sorted(name for name in loaded["missing_keys"] if not name.startswith("pooler."))
        if missing:
            raise InputError(
                f"{folder} lacks {len(missing)} of the model's weights, such as {missing[0]}; "
                "initialised at random, they would make its vectors meaningless. Download or save the model again"
            )
        if adapter is not None:
            self.model = _attach(self.model, adapter)
        self.model.eval().to(self.device)
        base = self.model.get_base_model() if adapter is not None else self.model
        parameters = inspect.signature(base.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._takes_cache = "use_cache" in parameters
        # RoBERTa and its relatives number positions from the pad tokens on; ids passed in would be off by that offset.
        embeddings = getattr(base, "embeddings", None)
        self._numbers_positions = hasattr(embeddings, "create_position_ids_from_input_ids")
        first = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
        if self.longest and first is not None:
            self.longest -= first + 1
        if getattr(config, "is_causal", None) is False and not sees_ahead(self.model):
            raise InputError(
                f"{folder / 'config.json'} says is_causal: false, but this version of transformers leaves "
                f"{type(base).__name__} causal, and its vectors would be wrong; pip install 'transformers>=5.2'"
            )

    def forward(self, batch: list[list[int]], conventions: Conventions) -> np.ndarray:
        """Pooled states after Dense layers, (len(batch), hidden_size) float32, not normalised.

        Raises:
            MemoryError: The device ran out of memory; a smaller batch may fit.
        """
        import torch

        try:
            with torch.inference_mode():
                shared = self._shared(batch, conventions)
                rows = self._pooled_after(batch, shared) if shared else self.pooled(batch, conventions)
                return rows.cpu().numpy()
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                raise MemoryError(str(error)) from error
            raise

    def pooled(self, batch: list[list[int]], conventions: Conventions) -> torch.Tensor:
        """Like `forward`, but a tensor on the device, with a graph if gradients are enabled."""
        ids, mask, pooled = self._pad(batch, conventions.padding_side)
        inputs: dict[str, Any] = {"input_ids": ids}
        if not bool(mask.all()):
            inputs["attention_mask"] = mask
            if conventions.padding_side == "left" and self._takes_positions and not self._numbers_positions:
                inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        if self._takes_cache:
            inputs["use_cache"] = False
        hidden = self.model(**inputs).last_hidden_state
        return self.dense(POOLINGS[conventions.pooling](hidden.float(), pooled))

    def _shared(self, batch: list[list[int]], conventions: Conventions) -> int:
        """How many tokens, that all texts begin with, are worth computing once; 0 for none."""
        causal = self.decoder and self.share_beginnings and self._takes_cache and not self.own_code
        if not causal or conventions.pooling != "last" or len(batch) < _LEAST_TEXTS:
            return 0
        config = getattr(self.model, "config", None)
        if config is None:
            return 0  # wrapped for training over several processes
        window = getattr(config, "sliding_window", None)
        if window is not None and max(map(len, batch)) > window:
            return 0  # what lies outside of it would have to be left out of the states that are kept
        shared = min(beginning(batch), min(map(len, batch)) - 1)
        return shared if shared >= _LEAST_SHARED else 0

    def _pooled_after(self, batch: list[list[int]], shared: int) -> torch.Tensor:
        """The states at the last tokens, with the keys and values of the first ones computed once for all texts."""
        import torch
        from transformers import DynamicCache

        beginning = [id if id >= 0 else ~id for id in batch[0][:shared]]
        cache = DynamicCache(config=self.model.config)
        first = torch.tensor([beginning], device=self.device)
        self.model(input_ids=first, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(batch))
        ids, mask, pooled = self._pad([tokens[shared:] for tokens in batch], "right")
        positions = shared + torch.arange(ids.shape[1], device=self.device)
        hidden = self.model(
            input_ids=ids,
            attention_mask=torch.cat([mask.new_ones(len(batch), shared), mask], 1),
            position_ids=positions.expand(len(batch), -1),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return self.dense(POOLINGS["last"](hidden.float(), pooled))

    def _pad(self, batch: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids, masks of attention and of pooling, each (batch, tokens); the negative id ~n is token n, not pooled."""
        import torch

        longest = max(map(len, batch))
        ids = np.zeros((len(batch), longest), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(batch):
            columns = slice(0, len(tokens)) if side == "right" else slice(longest - len(tokens), longest)
            ids[row, columns] = tokens
            mask[row, columns] = 1
        pooled = mask * (ids >= 0)
        ids = np.where(ids < 0, ~ids, ids)
        masks = torch.from_numpy(mask).to(self.device)
        return torch.from_numpy(ids).to(self.device), masks, torch.from_numpy(pooled).to(self.device)


def beginning(batch: list[list[int]]) -> int:
    """The number of tokens that all of several texts begin with."""
    first, last = min(batch), max(batch)  # the texts between them begin with what these two share
    return next((n for n, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and load reports; what matters in them is checked here."""
    from transformers.utils import logging

    bars: Any = logging  # has no types
    bars_on, verbosity = bars.is_progress_bar_enabled(), bars.get_verbosity()
    bars.disable_progress_bar()
    bars.set_verbosity_error()
    try:
        yield
    finally:
        bars.set_verbosity(verbosity)
        if bars_on:
            bars.enable_progress_bar()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory; any other RuntimeError is a real fault and must not shrink the batch."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def torch_device(name: str) -> torch.device:
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch raises both, for bad names and for missing hardware
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used here ({reason}); try --device {best_device()}") from None
    return torch.device(name)


def best_device() -> str:
    """ "cuda" before "mps" before "cpu"."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def choose_dtype(device_type: str) -> str:
    """bfloat16 where the hardware multiplies it natively, float32 elsewhere (emulated bfloat16 is slower)."""
    import torch

    if device_type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device_type == "cpu":
        amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
        avx512 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        return "bfloat16" if amx or avx512 else "float32"
    return "float32"


def is_decoder(config: Any) -> bool:
    """Whether the model's attention is causal, by its transformers config."""
    if getattr(config, "is_causal", None) is False or getattr(config, "use_bidirectional_attention", None):
        return False
    names = config.architectures or []
    return bool(getattr(config, "is_decoder", False)) or any("CausalLM" in n for n in names) or _is_causal_type(config)


def _is_causal_type(config: Any) -> bool:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    # Encoders such as BERT are in both lists (they have a causal variant); decoders are in the first alone.
    kind = config.model_type
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def sees_ahead(model: Any) -> bool:
    """Whether tokens attend to later ones, measured on the model itself and not read from its config.

    Raises:
        InputError: They do so only with padding, or only without.
    """
    import torch

    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.arange(1, 33, device=model.device) % vocabulary
    other = torch.cat([ids[:8], (ids[8:] + 24) % vocabulary])
    padded = torch.nn.functional.pad(torch.stack([ids, other]), (0, 8))
    mask = torch.ones_like(padded)
    mask[:, 32:] = 0
    differs = []
    with torch.inference_mode():
        for inputs in ({"input_ids": padded[:, :32]}, {"input_ids": padded, "attention_mask": mask}):
            first, second = model(**inputs).last_hidden_state[:, :8].float()
            differs.append(bool((first - second).norm() > 0.01 * first.norm()))
    if differs[0] != differs[1]:
        raise InputError(
            f"{type(model).__name__} attends to later tokens {'without' if differs[0] else 'with'} padding only, so a "
            "text's vector would depend on its batch; this version of transformers does not support the attention "
            "that its config requests. Use another version, or another model"
        )
    return differs[0]


def _attach(model: Any, adapter: Path) -> Any:
    """Apply a PEFT adapter, and make sure that it has an effect: peft ignores weights that fit nowhere."""
    import torch
    from peft import PeftModel

    # Any ids in the vocabulary will do to see a difference.
    probe = torch.arange(1, 33).unsqueeze(0) % model.config.get_text_config().vocab_size
    model.eval()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft and transformers warn about each other's old names
        before = model(input_ids=probe).last_hidden_state
        adapted = PeftModel.from_pretrained(model, str(adapter)).eval()
        after = adapted(input_ids=probe).last_hidden_state
    if torch.equal(before, after):
        rank = json.loads((adapter / "adapter_config.json").read_text()).get("r")
        raise InputError(
            f"adapter {adapter} (rank {rank}) changes nothing in this model; expected an adapter trained on it. "
            "Check base_model_name_or_path in its adapter_config.json, and that training has run"
        )
    return adapted
