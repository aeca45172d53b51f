"""What the trainers are told: one frozen model per trainer, every field with its unit and meaning."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jacobian_core.config import ModelConfig


class LanguageModelConfig(BaseModel):
    """Shape and schedule of a small GPT-NeoX language model trained from nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary_size: int = Field(default=4096, ge=257, description="entries of the byte-level BPE vocabulary")
    layers: int = Field(default=4, ge=1, description="transformer blocks")
    width: int = Field(default=128, ge=1, description="d_model, of the residual stream")
    mlp_width: int = Field(default=512, ge=1, description="d_mlp, hidden units of one MLP")
    heads: int = Field(default=4, ge=1, description="attention heads of a block; must divide the width")
    max_positions: int = Field(default=512, ge=1, description="longest sequence that the model's configuration admits")
    context_tokens: int = Field(default=256, ge=2, description="length of a training window")
    windows_per_step: int = Field(default=16, ge=1, description="training windows in one optimiser step")
    learning_rate: float = Field(
        default=2e-3, gt=0, description="AdamW's peak rate; a cosine ends at a twentieth of it"
    )
    weight_decay: float = Field(default=0.1, ge=0, description="AdamW's decay of matrices; vectors are not decayed")
    warmup_fraction: float = Field(default=0.02, ge=0, lt=1, description="share of the training with a rising rate")
    tokens: int = Field(
        default=20_000_000, ge=1, description="training tokens, repetitions included, after which to stop"
    )
    minutes: float | None = Field(
        default=None,
        gt=0,
        description="wall-clock budget, earlier parts of a resumed training included; None: tokens only",
    )
    checkpoint_seconds: float = Field(default=120.0, ge=0, description="time between two checkpoints")
    log_every_steps: int = Field(default=50, ge=1, description="steps between two progress records")
    bfloat16_autocast: bool = Field(default=False, description="multiply matrices in bfloat16; weights stay float32")
    threads: int | None = Field(default=None, ge=1, description="torch threads; None: torch's own choice")
    seed: int = Field(default=0, ge=0, description="of the initial weights and of the order of the windows")


class TrainPairConfig(BaseModel):
    """A pair of TopK dictionaries on one MLP's input and output, with a penalty on the Jacobian between them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig = Field(description="the language model; its layer must be given")
    training_shards: tuple[Path, ...] = Field(min_length=1, description="Pile-format shards to train on")
    held_out_shards: tuple[Path, ...] = Field(min_length=1, description="Pile-format shards for the final figures")
    model_name: str | None = Field(default=None, description="what cfg.json calls the model; None: model.name")
    dataset_name: str | None = Field(default=None, description="what cfg.json calls the text; None: the shards' folder")
    output: Path = Field(description="folder that receives cfg.json, sae_weights.safetensors and training.json")

    latents: int = Field(default=1024, ge=1, description="latents of each of the two dictionaries")
    active_latents: int = Field(default=16, ge=1, description="k: latents selected at a token, in each dictionary")
    jacobian_coefficient: float = Field(
        default=1.0, ge=0, description="lambda of lambda / k^2 sum |J| (published: 0.5 to 1); 0: the control"
    )
    jacobian_warmup_fraction: float = Field(
        default=0.05, ge=0, lt=1, description="share of steps, the first, with a rising lambda (as published)"
    )
    jacobian_every_tokens: int = Field(
        default=4,
        ge=1,
        description="the penalty is taken on every n-th token of a batch: unbiased, and nearly n times cheaper; 1: all",
    )

    tokens: int = Field(default=2_000_000, ge=1, description="training tokens, BOS excluded, repetitions included")
    context_tokens: int = Field(default=256, ge=2, description="length of a window, its leading BOS included")
    windows_per_step: int = Field(default=8, ge=1, description="windows in one optimiser step")
    token_folder: Path | None = Field(
        default=None,
        description="keep the text's token ids (4 bytes a token) in this folder for other trainings on the same text; "
        "None: beside the output, until the training is done",
    )
    activation_folder: Path | None = Field(
        default=None,
        description="keep MLP inputs (float16) in this folder and draw every step's tokens from it; None: the model "
        "runs for every step",
    )
    activation_tokens: int = Field(
        default=1_000_000, ge=1, description="MLP inputs to keep in activation_folder, fewer if the text is shorter"
    )
    learning_rate: float = Field(default=5e-4, gt=0, description="Adam's rate (default: as published)")
    decay_fraction: float = Field(default=0.2, ge=0, le=1, description="share of steps, the last, with a falling rate")

    dead_after_tokens: int = Field(default=100_000, ge=1, description="a latent not active for so many tokens is dead")
    revival_latents: int = Field(
        default=64, ge=1, description="dead latents that try to explain what is left unexplained"
    )
    revival_coefficient: float = Field(
        default=1 / 32, ge=0, description="weight of the dead latents' reconstruction loss"
    )

    resample_every_tokens: int | None = Field(
        default=None,
        ge=1,
        description="after so many tokens, again and again until the rate falls, dead latents are pointed at tokens' "
        "errors; null: never",
    )

    statistics_tokens: int = Field(default=20_000, ge=2, description="tokens that set the losses' scale and the biases")
    evaluation_tokens: int = Field(default=50_000, ge=1, description="held-out tokens of the final figures, at most")
    thresholds: tuple[float, ...] = Field(
        default=(0.005, 0.01, 0.015, 0.02), description="|J| above which elements are counted in the final figures"
    )
    log_every_steps: int = Field(default=50, ge=1, description="steps between two progress records")
    checkpoint: Path | None = Field(
        default=None, description="file to write regularly and to continue from; None: none"
    )
    checkpoint_seconds: float = Field(default=120.0, ge=0, description="time between two checkpoints")
    storage_dtype: Literal["float32", "float16"] = Field(default="float32", description="of the exported weights")
    export_format: Literal["published", "sae_lens"] = Field(
        default="published",
        description="'published': cfg.json and sae_weights.safetensors with both dictionaries; 'sae_lens': the folders "
        "in/ and out/, each as sae_lens saves a TopK SAE",
    )
    bfloat16_autocast: bool = Field(
        default=False,
        description="multiply by encoders and MLP weights in bfloat16; weights, selection, |J| and losses stay float32",
    )
    device: str = Field(default="cpu", description="torch device of the model and the dictionaries")
    threads: int | None = Field(default=None, ge=1, description="torch CPU threads; None: torch's own choice")
    seed: int = Field(default=0, ge=0, description="of the initial dictionaries and of the order of the windows")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.model.layer is None:
            raise ValueError("model.layer: name the block whose MLP the pair is trained on")
        if self.active_latents > self.latents:
            raise ValueError(f"active_latents: {self.active_latents} of {self.latents} latents can't be active")
        return self
