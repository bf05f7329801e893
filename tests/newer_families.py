"""More pipelines of diffusers that the predictor serves, each from its real classes at toy size; see families.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import (
    AdaptiveProjectedMixGuidance,
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanImage,
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    AutoencoderKLWan,
    BriaFiboPipeline,
    BriaFiboTransformer2DModel,
    BriaPipeline,
    BriaTransformer2DModel,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    Ideogram4Pipeline,
    Ideogram4Transformer2DModel,
    IFPipeline,
    Kandinsky3Pipeline,
    Kandinsky3UNet,
    Kandinsky5T2IPipeline,
    Kandinsky5Transformer3DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    LongCatImagePipeline,
    LongCatImageTransformer2DModel,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    NucleusMoEImagePipeline,
    NucleusMoEImageTransformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    PRXPipeline,
    PRXTransformer2DModel,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    UNet2DConditionModel,
    VQModel,
)
from transformers import (
    ByT5Tokenizer,
    GemmaConfig,
    GemmaModel,
    LlavaProcessor,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Mistral3Model,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5GemmaConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

from toys import (
    WIDTH,
    autoencoder,
    clip_encoder,
    clip_tokenizer,
    gemma_encoder,
    gemma_tokenizer,
    lively,
    qwen3_encoder,
    qwen_tokenizer,
    qwen_vision_encoder,
    t5_encoder,
    t5_tokenizer,
    unet,
)

# What the decoders of large language models agree on, where the pipeline reads them at depths that only many layers have.
_THIN = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
_NARROW = _THIN | {"num_hidden_layers": 2}


def _flux_2_autoencoder() -> AutoencoderKLFlux2:
    return AutoencoderKLFlux2(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
    )


def _qwen_autoencoder() -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def _mistral(tokens: int, kind: type = Mistral3Model, **settings: Any) -> Any:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 16}
    text = {"model_type": "mistral", "vocab_size": tokens, **_NARROW, **settings}
    return kind(Mistral3Config(text_config=text, vision_config={"model_type": "pixtral", **vision}))


def _qwen3_vision(tokens: int, kind: type = Qwen3VLModel, **settings: Any) -> Any:
    """It sees no picture here, but has eyes."""
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    positions = {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 1e6, "mrope_interleaved": True}
    text = {"vocab_size": tokens, **_NARROW, **ends, "rope_parameters": positions, **settings}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    return kind(Qwen3VLConfig(text_config=text, vision_config=vision | {"deepstack_visual_indexes": [0]}))


def _processor(tokenizer: Any) -> LlavaProcessor:
    """A tokenizer inside a processor for pictures and words. The classes that these repositories name need torchvision, which
    the predictor does not: this one behaves as they do where there are only words."""
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is string %}{{ message.content }}"
        "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return LlavaProcessor(CLIPImageProcessorPil(), tokenizer, chat_template=tokenizer.chat_template)


@lively
def flux_2(folder: Path) -> Flux2Pipeline:
    """FLUX.2 dev: distilled guidance, one forward a step."""
    processor = _processor(qwen_tokenizer())
    return Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_flux_2_autoencoder(),
        text_encoder=_mistral(len(processor.tokenizer), Mistral3ForConditionalGeneration, num_hidden_layers=30),
        tokenizer=processor,
        transformer=Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * 16,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
        ),
    )


@lively
def hunyuan_image(folder: Path) -> HunyuanImagePipeline:
    """Guidance by components that remember steps, and a second text encoder for what stands in quotation marks."""
    tokenizer = qwen_tokenizer()
    guider = {"guidance_scale": 3.5, "adaptive_projected_guidance_start_step": 0, "adaptive_projected_guidance_rescale": 10.0}
    return HunyuanImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        vae=AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 32),
            layers_per_block=1,
            spatial_compression_ratio=2,
            sample_size=64,
            scaling_factor=0.75,
        ),
        text_encoder=qwen_vision_encoder(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(T5Config(vocab_size=384, d_model=WIDTH, d_kv=16, d_ff=37, num_layers=1, num_heads=2)),
        tokenizer_2=ByT5Tokenizer(),
        transformer=HunyuanImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            text_embed_dim=WIDTH,
            text_embed_2_dim=WIDTH,
            rope_axes_dim=(8, 8),
        ),
        guider=AdaptiveProjectedMixGuidance(**guider),
        ocr_guider=AdaptiveProjectedMixGuidance(**guider),
    )


@lively
def latent_consistency(folder: Path) -> LatentConsistencyModelPipeline:
    """Guidance as a condition, and noise in every step."""
    tokenizer = clip_tokenizer(folder)
    return LatentConsistencyModelPipeline(
        vae=autoencoder(),
        text_encoder=clip_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=unet(time_cond_proj_dim=32),
        scheduler=LCMScheduler(beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@lively
def pixart_alpha(folder: Path) -> PixArtAlphaPipeline:
    """The one of 1024 pixels, with sizes as conditions."""
    return PixArtAlphaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(),
        vae=autoencoder(),
        transformer=PixArtTransformer2DModel(
            sample_size=128,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=6,
            caption_channels=WIDTH,
            cross_attention_dim=48,
            in_channels=4,
            out_channels=8,
        ),
        scheduler=DPMSolverMultistepScheduler(),
    )


@lively
def sana_sprint(folder: Path) -> SanaSprintPipeline:
    """Distilled to two steps, with guidance as a condition and noise in every step."""
    tokenizer = gemma_tokenizer()
    return SanaSprintPipeline(
        tokenizer=tokenizer,
        text_encoder=gemma_encoder(tokenizer),
        vae=AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock",) * 3,
            decoder_block_types=("ResBlock",) * 3,
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), ()),
            decoder_qkv_multiscales=((), (), ()),
        ),
        transformer=SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=16,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=WIDTH,
            caption_channels=WIDTH,
            sample_size=32,
            guidance_embeds=True,
            timestep_scale=1000.0,
        ),
        scheduler=SCMScheduler(),
    )


@lively
def ovis_image(folder: Path) -> OvisImagePipeline:
    """FLUX behind a language model, with guidance by a second call."""
    tokenizer = qwen_tokenizer()
    return OvisImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder(shift_factor=0.05, scaling_factor=1.5),
        text_encoder=qwen3_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=OvisImageTransformer2DModel(
            in_channels=16,
            out_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
        ),
    )


@lively
def prx(folder: Path) -> PRXPipeline:
    """Half of T5Gemma reads the prompt."""
    tokenizer = gemma_tokenizer()
    tokenizer.model_max_length = 32
    text = {"vocab_size": len(tokenizer), **_NARROW, "query_pre_attn_scalar": 16}
    whole = T5GemmaConfig(encoder=text, decoder=text, vocab_size=len(tokenizer))
    encoder = T5GemmaEncoder(whole.encoder)
    encoder.config = whole
    return PRXPipeline(
        transformer=PRXTransformer2DModel(
            in_channels=4,
            patch_size=2,
            context_in_dim=16,
            hidden_size=WIDTH,
            num_heads=2,
            depth=2,
            axes_dim=[8, 8],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=encoder,
        tokenizer=tokenizer,
        vae=autoencoder(shift_factor=0.05, scaling_factor=1.5),
        default_sample_size=64,
    )


@lively
def bria(folder: Path) -> BriaPipeline:
    return BriaPipeline(
        transformer=BriaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=[4, 6, 6],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder(shift_factor=0.05, scaling_factor=1.5),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )


@lively
def bria_fibo(folder: Path) -> BriaFiboPipeline:
    """The denoiser reads every layer of the text encoder: a list of tensors with rows. The number of a token is written into
    the pipeline, and sixteen pixels a latent are."""
    tokenizer = qwen_tokenizer()
    return BriaFiboPipeline(
        transformer=BriaFiboTransformer2DModel(
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=2 * 16,
            text_encoder_dim=16,
            axes_dims_rope=[4, 6, 6],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLWan(
            base_dim=8,
            decoder_base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
        ),
        text_encoder=SmolLM3ForCausalLM(SmolLM3Config(vocab_size=128_001, pad_token_id=0, tie_word_embeddings=True, **_NARROW)),
        tokenizer=tokenizer,
    )


@lively
def krea_2(folder: Path) -> Krea2Pipeline:
    """The denoiser reads several layers of the text encoder, laid side by side."""
    tokenizer = qwen_tokenizer()
    return Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_qwen_autoencoder(),
        text_encoder=_qwen3_vision(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=Krea2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=WIDTH,
            timestep_embed_dim=16,
            text_hidden_dim=16,
            num_text_layers=2,
            text_num_attention_heads=1,
            text_num_key_value_heads=1,
            text_intermediate_size=16,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 6, 6),
        ),
        text_encoder_select_layers=(1, 2),
    )


@lively
def ernie_image(folder: Path) -> ErnieImagePipeline:
    """Texts as long as they are, with their lengths beside them. Without the language model that may rewrite prompts."""
    tokenizer = qwen_tokenizer()
    return ErnieImagePipeline(
        transformer=ErnieImageTransformer2DModel(
            hidden_size=WIDTH,
            num_attention_heads=2,
            num_layers=2,
            ffn_hidden_size=37,
            in_channels=16,
            out_channels=16,
            text_in_dim=16,
            rope_axes_dim=(4, 6, 6),
        ),
        vae=_flux_2_autoencoder(),
        text_encoder=_mistral(len(tokenizer)),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


@lively
def kandinsky_3(folder: Path) -> Kandinsky3Pipeline:
    """Decodes without an image processor: what it calls "pt" is neither from 0 to 1 nor clipped."""
    return Kandinsky3Pipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(),
        unet=Kandinsky3UNet(
            time_embedding_dim=16,
            groups=2,
            attention_head_dim=8,
            layers_per_block=2,
            block_out_channels=(16, 32),
            cross_attention_dim=16,
            encoder_hid_dim=WIDTH,
        ),
        scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=True, thresholding=False),
        movq=VQModel(
            block_out_channels=(8, 8, 8, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=8,
            num_vq_embeddings=12,
            vq_embed_dim=4,
        ),
    )


@lively
def lumina(folder: Path) -> LuminaPipeline:
    """Lumina-Next: builds its table of positions anew in every step."""
    tokenizer = gemma_tokenizer()
    tokenizer.add_bos_token = True  # or an empty prompt would be the mean of nothing
    tokenizer.update_post_processor()
    return LuminaPipeline(
        transformer=LuminaNextDiT2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=WIDTH,
            num_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            cross_attention_dim=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(levels=4, scaling_factor=1.5),
        text_encoder=GemmaModel(GemmaConfig(vocab_size=len(tokenizer), **_NARROW)),
        tokenizer=tokenizer,
    )


@lively
def deepfloyd_if(folder: Path) -> IFPipeline:
    """Paints pixels: no autoencoder, no image processor."""
    return IFPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(),
        unet=UNet2DConditionModel(
            sample_size=32,
            in_channels=3,
            out_channels=6,
            layers_per_block=1,
            block_out_channels=(8, 8, 16),
            down_block_types=("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
            cross_attention_dim=WIDTH,
            encoder_hid_dim=WIDTH,
            attention_head_dim=4,
            addition_embed_type="text",
            addition_embed_type_num_heads=2,
            cross_attention_norm="group_norm",
            resnet_time_scale_shift="scale_shift",
            act_fn="gelu",
            norm_num_groups=8,
        ),
        scheduler=DDPMScheduler(
            beta_schedule="squaredcos_cap_v2",
            variance_type="learned_range",
            thresholding=True,
            dynamic_thresholding_ratio=0.95,
            sample_max_value=1.5,
        ),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


@lively
def kandinsky_5(folder: Path) -> Kandinsky5T2IPipeline:
    """Positions as a list with an entry for the one frame, and answers with `image` where others have `images`. Paints in the
    nearest of a list of sizes. Eight pixels a latent are written into the pipeline."""
    tokenizer, processor = clip_tokenizer(folder), _processor(qwen_tokenizer())
    return Kandinsky5T2IPipeline(
        transformer=Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            in_text_dim=WIDTH,
            in_text_dim2=WIDTH,
            time_dim=16,
            out_visual_dim=4,
            model_dim=WIDTH,
            ff_dim=37,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=(4, 6, 6),
        ),
        vae=autoencoder(levels=4, scaling_factor=1.5),
        text_encoder=qwen_vision_encoder(processor.tokenizer),
        tokenizer=processor,
        text_encoder_2=clip_encoder(tokenizer, longest=77),
        tokenizer_2=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


@lively
def longcat_image(folder: Path) -> LongCatImagePipeline:
    """Rewrites each prompt with its text encoder."""
    processor = _processor(qwen_tokenizer())
    return LongCatImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder(16, shift_factor=0.05, scaling_factor=1.5),
        text_encoder=qwen_vision_encoder(processor.tokenizer),
        tokenizer=processor.tokenizer,
        text_processor=processor,
        transformer=LongCatImageTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=[4, 6, 6],
        ),
    )


@lively
def qwen_image_2_1(folder: Path) -> QwenImage21Pipeline:
    """The denoiser keeps what it made of the text in an object that each request brings along."""
    processor = _processor(qwen_tokenizer())
    return QwenImage21Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLQwenImage21(
            base_dim=8,
            decoder_base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        text_encoder=_qwen3_vision(len(processor.tokenizer), Qwen3VLForConditionalGeneration),
        processor=processor,
        transformer=QwenImage21Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            context_in_dim=16,
            axes_dims_rope=(4, 6, 6),
        ),
    )


@lively
def nucleus_moe_image(folder: Path) -> NucleusMoEImagePipeline:
    """Experts that choose their tokens, row by row."""
    processor = _processor(qwen_tokenizer())
    return NucleusMoEImagePipeline(
        transformer=NucleusMoEImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 6, 6),
            mlp_ratio=6.0,
            dense_moe_strategy="leave_first_block_dense",
            num_experts=4,
            moe_intermediate_dim=16,
            capacity_factors=2.0,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_qwen_autoencoder(),
        text_encoder=_qwen3_vision(len(processor.tokenizer), Qwen3VLForConditionalGeneration, num_hidden_layers=8),
        processor=processor,
    )


@lively
def ideogram_4(folder: Path) -> Ideogram4Pipeline:
    """Two denoisers, of which the second never reads a text. Fills every text up to 2048 tokens."""
    tokenizer = _processor(qwen_tokenizer()).tokenizer

    def transformer() -> Ideogram4Transformer2DModel:
        return Ideogram4Transformer2DModel(
            in_channels=16,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=1,
            intermediate_size=16,
            adaln_dim=16,
            llm_features_dim=13 * 16,
            mrope_section=(4, 2, 2),
        )

    return Ideogram4Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_flux_2_autoencoder(),
        text_encoder=_qwen3_vision(len(tokenizer), num_hidden_layers=36),
        tokenizer=tokenizer,
        transformer=transformer(),
        unconditional_transformer=transformer(),
    )
