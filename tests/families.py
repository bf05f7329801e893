"""The pipelines of diffusers that the predictor serves, beside the four in toys.py, each from its real classes at toy size.

A family is a function from a folder, where a tokenizer may keep its files while it is made, to a pipeline. All of them
have the parts that make their family what it is (text encoders, kind of denoiser, sampler, distilled or not), for it is
these that decide with what arguments the denoiser is called.
"""

from __future__ import annotations

from pathlib import Path

from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogVideoXDDIMScheduler,
    CogView3PlusPipeline,
    CogView3PlusTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    KolorsPipeline,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import CLIPTextModelWithProjection, Qwen3ForCausalLM, UMT5Config, UMT5EncoderModel

from toys import (
    UNET_XL,
    WIDTH,
    autoencoder,
    bert_encoder,
    bert_tokenizer,
    chatglm_encoder,
    chatglm_tokenizer,
    clip_encoder,
    clip_tokenizer,
    flux,
    gemma_encoder,
    gemma_tokenizer,
    glm_encoder,
    lively,
    llama_causal_lm,
    qwen3_encoder,
    qwen_tokenizer,
    qwen_vision_encoder,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    t5_encoder,
    t5_tokenizer,
    unet,
)


def stable_diffusion_pag(folder: Path) -> StableDiffusionPAGPipeline:
    """Perturbed attention: its denoiser takes the batch for three parts of one request, and so cannot be shared."""
    return StableDiffusionPAGPipeline.from_pipe(stable_diffusion(folder))


@lively
def stable_diffusion_2(folder: Path) -> StableDiffusionPipeline:
    """Predicts velocity, as the 768 pixel checkpoints do."""
    pipe = stable_diffusion(folder)
    pipe.scheduler = DDIMScheduler(
        clip_sample=False, steps_offset=1, prediction_type="v_prediction", beta_schedule="scaled_linear"
    )
    pipe.unet = unet(use_linear_projection=True, attention_head_dim=(2, 4))
    return pipe


@lively
def stable_diffusion_xl_turbo(folder: Path) -> StableDiffusionXLPipeline:
    """Distilled to a few steps without guidance, counted back from the last timestep."""
    pipe = stable_diffusion_xl(folder)
    pipe.scheduler = EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing")
    return pipe


@lively
def flux_schnell(folder: Path) -> FluxPipeline:
    """Distilled to a few steps and without a guidance scale."""
    return flux(folder, guidance_embeds=False)


@lively
def flux_2_klein(folder: Path) -> Flux2KleinPipeline:
    """Calls its denoiser twice a step, and reads the text encoder at depths that are written into the pipeline."""
    tokenizer = qwen_tokenizer()
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLFlux2(
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=8,
        ),
        text_encoder=qwen3_encoder(
            tokenizer, Qwen3ForCausalLM, num_hidden_layers=27, hidden_size=16, num_attention_heads=1, num_key_value_heads=1
        ),
        tokenizer=tokenizer,
        transformer=Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * 16,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
    )


@lively
def chroma(folder: Path) -> ChromaPipeline:
    """FLUX without CLIP and with guidance by a second call, and a mask over text and picture."""
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(shift_factor=0.05, scaling_factor=1.5),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
        transformer=ChromaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
            approximator_num_channels=8,
            approximator_hidden_dim=16,
            approximator_layers=1,
        ),
    )


@lively
def qwen_image(folder: Path) -> QwenImagePipeline:
    """Texts as long as they are: no padding to a common length."""
    tokenizer = qwen_tokenizer()
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        text_encoder=qwen_vision_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
        ),
    )


@lively
def z_image(folder: Path) -> ZImagePipeline:
    """Its denoiser takes a list of latents and a list of texts, one for each row."""
    tokenizer = qwen_tokenizer()
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(shift_factor=0.05, scaling_factor=1.5),
        text_encoder=qwen3_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=ZImageTransformer2DModel(
            in_channels=4,
            dim=WIDTH,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=WIDTH,
            axes_dims=[4, 6, 6],
            axes_lens=[256, 64, 64],
        ),
    )


@lively
def pixart_sigma(folder: Path) -> PixArtSigmaPipeline:
    return PixArtSigmaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(),
        vae=autoencoder(),
        transformer=PixArtTransformer2DModel(
            sample_size=16,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_channels=WIDTH,
            cross_attention_dim=WIDTH,
            in_channels=4,
            out_channels=8,
        ),
        scheduler=DPMSolverMultistepScheduler(),
    )


@lively
def sana(folder: Path) -> SanaPipeline:
    tokenizer = gemma_tokenizer()
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=gemma_encoder(tokenizer),
        vae=AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
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
            sample_size=16,
        ),
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )


@lively
def aura_flow(folder: Path) -> AuraFlowPipeline:
    return AuraFlowPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(UMT5EncoderModel, UMT5Config),
        vae=autoencoder(),
        transformer=AuraFlowTransformer2DModel(
            sample_size=16,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=WIDTH,
            caption_projection_dim=WIDTH,
            pos_embed_max_size=256,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )


@lively
def hunyuan_dit(folder: Path) -> HunyuanDiTPipeline:
    """Position embeddings without rows, sizes as conditions with them, eight pixels a latent written into the pipeline."""
    tokenizer = bert_tokenizer()
    return HunyuanDiTPipeline(
        vae=autoencoder(levels=4),
        text_encoder=bert_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=HunyuanDiT2DModel(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=4,
            hidden_size=WIDTH,
            in_channels=4,
            mlp_ratio=2.0,
            cross_attention_dim=WIDTH,
            cross_attention_dim_t5=WIDTH,
            pooled_projection_dim=WIDTH,
        ),
        scheduler=DDPMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
    )


@lively
def hidream(folder: Path) -> HiDreamImagePipeline:
    """Four text encoders, of one of which the denoiser takes every layer: [layers, rows, …], rows in second place. Paints as
    many pixels as its native size has, which is an attribute and in no configuration: 1024 x 1024 where the autoencoder
    has eight pixels a latent."""
    tokenizer, letters = clip_tokenizer(folder), t5_tokenizer()
    return HiDreamImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(shift_factor=0.05, scaling_factor=1.5),
        text_encoder=clip_encoder(tokenizer, CLIPTextModelWithProjection, longest=128),
        tokenizer=tokenizer,
        text_encoder_2=clip_encoder(tokenizer, CLIPTextModelWithProjection, longest=128),
        tokenizer_2=tokenizer,
        text_encoder_3=t5_encoder(),
        tokenizer_3=letters,
        text_encoder_4=llama_causal_lm(len(letters)),
        tokenizer_4=letters,
        transformer=HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            caption_channels=[WIDTH, WIDTH],
            text_emb_dim=2 * WIDTH,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=(4, 6, 6),
            max_resolution=(32, 32),
            llama_layers=[0, 1, 2],
            force_inference_output=True,
        ),
    )


@lively
def kolors(folder: Path) -> KolorsPipeline:
    """SDXL's denoiser behind a language model of which diffusers keeps the code. Its tokenizer needs sentencepiece."""
    return KolorsPipeline(
        vae=autoencoder(force_upcast=True),
        text_encoder=chatglm_encoder(),
        tokenizer=chatglm_tokenizer(folder),
        unet=unet(**UNET_XL, encoder_hid_dim=WIDTH, encoder_hid_dim_type="text_proj"),
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1),
    )


@lively
def lumina_2(folder: Path) -> Lumina2Pipeline:
    """Eight pixels a latent are written into the pipeline."""
    tokenizer = gemma_tokenizer()
    return Lumina2Pipeline(
        transformer=Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=WIDTH,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=2,
            axes_dim_rope=(4, 6, 6),
            axes_lens=(300, 64, 64),
            cap_feat_dim=WIDTH,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=autoencoder(levels=4, shift_factor=0.05, scaling_factor=1.5),
        text_encoder=gemma_encoder(tokenizer),
        tokenizer=tokenizer,
    )


@lively
def cogview_3_plus(folder: Path) -> CogView3PlusPipeline:
    return CogView3PlusPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(),
        vae=autoencoder(),
        transformer=CogView3PlusTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            text_embed_dim=WIDTH,
            time_embed_dim=WIDTH,
            condition_dim=8,
            pos_embed_max_size=32,
            sample_size=16,
        ),
        scheduler=CogVideoXDDIMScheduler(
            prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
        ),
    )


@lively
def cogview_4(folder: Path) -> CogView4Pipeline:
    """Texts padded to the next sixteen tokens, without a mask; guidance by a second call."""
    tokenizer = t5_tokenizer()
    return CogView4Pipeline(
        tokenizer=tokenizer,
        text_encoder=glm_encoder(len(tokenizer)),
        vae=autoencoder(),
        transformer=CogView4Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            text_embed_dim=WIDTH,
            time_embed_dim=WIDTH,
            condition_dim=8,
            sample_size=16,
            rope_axes_dim=(16, 16),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear"),
    )


# These share forwards.
SHARING = [
    stable_diffusion,
    stable_diffusion_2,
    stable_diffusion_xl,
    stable_diffusion_xl_turbo,
    stable_diffusion_3,
    flux,
    flux_schnell,
    flux_2_klein,
    chroma,
    qwen_image,
    z_image,
    pixart_sigma,
    sana,
    aura_flow,
    hunyuan_dit,
    kolors,
    lumina_2,
    cogview_3_plus,
    cogview_4,
]
# What an operator would say of a model, where its repository does not.
SAID = {stable_diffusion_xl_turbo: {"default_guidance": 0.0, "default_steps": 2}}
