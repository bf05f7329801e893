"""Real diffusers and transformers classes at toy size with random weights, and a volume to put them on."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

WIDTH = 32
COMMIT = "c0ffee" + "0" * 34


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """Letters only: every character of a prompt is a token. Reads 16."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def t5_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {chr(code): code - 30 for code in range(33, 127)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )


def clip_encoder(tokenizer: CLIPTokenizer, kind: type = CLIPTextModel, longest: int | None = None) -> Any:
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=longest or tokenizer.model_max_length,
        projection_dim=WIDTH,
        hidden_act="gelu",
        **special,
    )
    return kind(config)


def t5_encoder(kind: type = T5EncoderModel, config: type = T5Config) -> Any:
    return kind(config(vocab_size=100, d_model=WIDTH, d_kv=16, d_ff=37, num_layers=1, num_heads=2))


def bert_tokenizer() -> BertTokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = [*special, *letters, *("##" + letter for letter in letters)]
    return BertTokenizer({token: i for i, token in enumerate(vocabulary)}, model_max_length=16)


def gemma_tokenizer() -> GemmaTokenizer:
    """Letters only, as above."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocabulary = [*special, "\u2581", *(chr(code) for code in range(33, 127))]
    return GemmaTokenizer({token: i for i, token in enumerate(vocabulary)}, [], model_max_length=2048)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Every byte is a token, and so is each mark of the chat template."""
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *marks]
    tokenizer = Qwen2Tokenizer({token: i for i, token in enumerate(vocabulary)}, [], model_max_length=2048)
    tokenizer.add_special_tokens({"additional_special_tokens": marks[1:]})
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def chatglm_tokenizer(folder: Path) -> ChatGLMTokenizer:
    """Letters only, in the file format of the sentencepiece library."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.unk_id, model.trainer_spec.bos_id, model.trainer_spec.eos_id = 0, 1, 2
    for piece, kind in [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("\u2581", 1), *((chr(code), 1) for code in range(33, 127))]:
        model.pieces.add(piece=piece, type=kind)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    return ChatGLMTokenizer(str(folder / "tokenizer.model"), model_max_length=2048)


# What the decoders of large language models agree on.
_LANGUAGE_MODEL = {
    "hidden_size": WIDTH,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def bert_encoder(tokenizer: BertTokenizer) -> BertModel:
    return BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
        )
    )


def gemma_encoder(tokenizer: GemmaTokenizer) -> Gemma2Model:
    """Thin, for Sana sets a page of instructions before each prompt."""
    thin = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "query_pre_attn_scalar": 8}
    return Gemma2Model(Gemma2Config(**{"vocab_size": len(tokenizer), **_LANGUAGE_MODEL, **thin}))


def chatglm_encoder() -> ChatGLMModel:
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=128,
        hidden_size=WIDTH,
        ffn_hidden_size=37,
        kv_channels=8,
        num_attention_heads=4,
        multi_query_attention=True,
        multi_query_group_num=2,
        original_rope=True,
    )
    encoder = ChatGLMModel(config)
    for weight in encoder.parameters():  # the class leaves in them what was in memory
        torch.nn.init.normal_(weight, std=0.1)
    return encoder


def glm_encoder(vocabulary: int) -> GlmModel:
    return GlmModel(GlmConfig(vocab_size=vocabulary, pad_token_id=0, **_LANGUAGE_MODEL))


def llama_causal_lm(vocabulary: int) -> LlamaForCausalLM:
    """Eager, for HiDream asks for attentions and leaves them."""
    settings = _LANGUAGE_MODEL | {"vocab_size": vocabulary, "num_hidden_layers": 3, "attn_implementation": "eager"}
    return LlamaForCausalLM(LlamaConfig(**settings))


def qwen3_encoder(tokenizer: Qwen2Tokenizer, kind: type = Qwen3Model, **settings: Any) -> PreTrainedModel:
    return kind(Qwen3Config(**{"vocab_size": len(tokenizer), **_LANGUAGE_MODEL, **settings}))


def qwen_vision_encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """It sees no picture here, but has eyes."""
    ends = {"bos_token_id": None, "eos_token_id": None}
    positions = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    text = {**_LANGUAGE_MODEL, **ends, "vocab_size": len(tokenizer), "rope_parameters": positions}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def autoencoder(latent_channels: int = 4, levels: int = 2, **settings: Any) -> AutoencoderKL:
    """Two pixels a latent; doubled by every further level."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 32, 32)[:levels],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=latent_channels,
        norm_num_groups=8,
        **settings,
    )


def unet(**settings: Any) -> UNet2DConditionModel:
    given = {
        "sample_size": 16,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**given | settings)


def lively(make: Callable[..., DiffusionPipeline]) -> Callable[..., DiffusionPipeline]:
    """The same weights every time, and so large that all a denoiser is told shows in the picture: as the classes draw them,
    a text hardly does, and a row with somebody else's text would go unnoticed."""

    @functools.wraps(make)
    def made(folder: Path, **settings: object) -> DiffusionPipeline:
        torch.manual_seed(0)
        pipe = make(folder, **settings)
        for component in pipe.components.values():
            for weight in component.parameters() if isinstance(component, torch.nn.Module) else ():
                if weight.ndim > 1:
                    torch.nn.init.normal_(weight, std=1.5 / weight[0].numel() ** 0.5)
        return pipe

    return made


@lively
def stable_diffusion(folder: Path) -> StableDiffusionPipeline:
    tokenizer = clip_tokenizer(folder)
    return StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=clip_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=unet(),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


UNET_XL = {
    "cross_attention_dim": 2 * WIDTH,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
}


@lively
def stable_diffusion_xl(folder: Path) -> StableDiffusionXLPipeline:
    tokenizer = clip_tokenizer(folder)
    return StableDiffusionXLPipeline(
        vae=autoencoder(force_upcast=True),
        text_encoder=clip_encoder(tokenizer),
        text_encoder_2=clip_encoder(tokenizer, CLIPTextModelWithProjection),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet(**UNET_XL),
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )


@lively
def stable_diffusion_3(folder: Path) -> StableDiffusion3Pipeline:
    tokenizer = clip_tokenizer(folder)
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=WIDTH,
            joint_attention_dim=2 * WIDTH,
            pooled_projection_dim=2 * WIDTH,
            out_channels=4,
            pos_embed_max_size=48,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(shift_factor=0.05, scaling_factor=1.5),
        text_encoder=clip_encoder(tokenizer, CLIPTextModelWithProjection),
        tokenizer=tokenizer,
        text_encoder_2=clip_encoder(tokenizer, CLIPTextModelWithProjection),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


@lively
def flux(folder: Path, guidance_embeds: bool = True) -> FluxPipeline:
    tokenizer = clip_tokenizer(folder)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(shift_factor=0.05, scaling_factor=1.5),
        text_encoder=clip_encoder(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=guidance_embeds,
        ),
    )


def publish(pipe: DiffusionPipeline, root: Path, model_id: str, commit: str = COMMIT, variant: str | None = None) -> Path:
    """The volume as the downloader leaves it, made by hand so that the predictor's tests need no downloader."""
    model = root / model_id
    path = model / "snapshots" / (f"{commit}-{variant}" if variant else commit)
    pipe.save_pretrained(path, variant=variant)
    write_manifest(path, model_id, commit, variant)
    (model / "refs").mkdir(exist_ok=True)
    (model / "refs" / "main").write_text(path.name + "\n")
    return path


def write_manifest(path: Path, repo: str, commit: str = COMMIT, variant: str | None = None) -> None:
    files = [
        {
            "path": file.relative_to(path).as_posix(),
            "size": len(data := file.read_bytes()),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "manifest.json"
    ]
    pipeline = json.loads((path / "model_index.json").read_text())["_class_name"]
    manifest = {"format": 1, "repo": repo, "commit": commit, "variant": variant, "pipeline": pipeline, "files": files}
    (path / "manifest.json").write_text(json.dumps(manifest))
