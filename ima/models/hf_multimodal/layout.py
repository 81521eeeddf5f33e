"""Which position of a laid out text is what, for any processor of Hugging Face: the one rule for all types.

The processor itself says which stretch of the text it wrote for a medium. In it, placeholder ids are percepts, of the
modality of the stretch; everything else there is SPECIAL. Outside, the question is PROMPT and the template SPECIAL.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ima.core.errors import UserError
from ima.core.media import Clip, Medium, Sound
from ima.core.trust import reason_of
from ima.core.types import Role
from ima.models.encoders.audio import resampled
from ima.models.hf_multimodal.kinds import ID_NAMES, KEYS, Kind
from ima.models.hf_multimodal.voxtral import lay_out_by_hand

TOKEN_INPUTS = ("input_ids", "mm_token_type_ids", "token_type_ids")  # told of each position
NOT_INPUTS = ("attention_mask", "labels", "offset_mapping", "text_replacement_offsets")
WHOLE_PROCESSOR = "is its processor_config.json whole (patch_size, num_additional_image_tokens)?"
MARK = "\ue000"  # stands for the question while a template is tried out


@dataclasses.dataclass
class TokenizedSample:
    """One row, prompt only. tokens: what is told of each position, by the input's name; media: the other inputs."""

    tokens: dict[str, list[int]]
    roles: list[int]
    media: dict[str, Tensor]


class Layout:
    """The processor of one model, asked for one row at a time. num_frames: frames of a clip, evenly over it."""

    def __init__(self, processor: Any, config: Any, kind: Kind, name: str, num_frames: int = 8) -> None:
        self.processor, self.tokenizer, self.kind, self.name = processor, processor.tokenizer, kind, name
        self.num_frames = num_frames
        self.ids = placeholder_ids(config)
        self.shown = {each: str(token) for each in KEYS if (token := getattr(processor, f"{each}_token", None))}
        if kind.by_hand:
            self.shown["audio"] = str(self.tokenizer.convert_ids_to_tokens(sorted(self.ids)[0]))
        self.modalities = tuple(each for each in kind.modalities if each in self.shown)

    @property
    def never_written(self) -> list[int]:
        """Ids that stand for media: an answer that held one would ask for a medium that is not there."""
        shown = self.tokenizer.convert_tokens_to_ids(list(self.shown.values()))
        return sorted({*self.ids, *(token for token in shown if token is not None)})

    def lay(self, prompt: str, media: Sequence[Medium], modality: str) -> TokenizedSample:
        """Raises UserError where the processor does something else than the rule says."""
        if media and modality not in self.modalities:
            can = ", ".join(self.modalities)
            raise UserError(f"data: a {modality} cannot be shown to {self.name} (type {self.kind.model_type}): {can}")
        prompt = prompt.strip()
        before, behind = self.around(prompt, modality, len(media))
        text = before + prompt + behind
        made = self.processed(text, media, modality)
        ids, offsets = made["input_ids"][0].tolist(), made["offset_mapping"][0].tolist()
        told = made.get(
            "text_replacement_offsets"
        )  # processors say nothing, or an empty list, where there is no medium
        spans = told[0] if told is not None and len(told) else []
        if len(spans) != len(media):
            raise UserError(f"lmm.path: {self.name} shows {len(spans)} of {len(media)} media of a sample")
        appended = "" if self.kind.bare and not media else self.kind.appended
        end = max((high for _, high in offsets), default=0) - len(appended) - len(behind)
        roles = roles_of(ids, offsets, [span["new_span"] for span in spans], self.ids, (end - len(prompt), end))
        if media and int(Role.PERCEPT) not in roles:
            raise UserError(f"lmm.path: {self.name} has no placeholder of a {modality} in its text")
        tokens = {name: made[name][0].tolist() for name in TOKEN_INPUTS if name in made}
        if self.kind.answer_type:  # without media too: answers behind the text must differ from it
            tokens.setdefault("token_type_ids", [0] * len(ids))
        inputs = {name: value for name, value in made.items() if name not in (*TOKEN_INPUTS, *NOT_INPUTS)}
        return TokenizedSample(tokens, roles, inputs)

    def around(self, prompt: str, modality: str, num: int) -> tuple[str, str]:
        """What stands before and behind the question, ready for the answer. Templates take a turn in parts, or as one
        text (those of language models)."""
        if num == 0 and self.kind.bare:
            return halves(self.kind.bare.format(bos=self.tokenizer.bos_token, prompt=MARK))
        shown = self.shown.get(modality, "")
        if not getattr(self.processor, "chat_template", None):
            return halves(self.kind.plain.format(media=shown * num, prompt=MARK))
        parts = [*({"type": modality} for _ in range(num)), {"type": "text", "text": MARK}]
        for content in (parts, f"{shown}\n" * num + MARK):
            try:
                text: str = self.processor.apply_chat_template(
                    [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
                )
            except Exception:  # a template raises what it likes
                continue
            if text.count(MARK) == 1 and (not shown or text.count(shown) == num):
                return halves(text)
        raise UserError(
            f"lmm.path: the chat template of {self.name} shows no {modality} and question; mend or remove it"
        )

    def processed(self, text: str, media: Sequence[Medium], modality: str) -> Any:
        asked: dict[str, Any] = {"return_tensors": "pt", "return_offsets_mapping": True}
        if self.tokenizer.bos_token and text.startswith(self.tokenizer.bos_token):
            asked["add_special_tokens"] = False  # as transformers does it: the template wrote the first token
        if not media and (self.kind.bare or self.kind.by_hand):
            return self.tokenizer(text, **asked)
        if self.kind.by_hand:
            waves = [self.wave(sound) for sound in media]
            return lay_out_by_hand(self.processor, text, waves, self.shown[modality], asked)
        given = self.given(media, modality) if media else {}
        try:
            return self.processor(text=[text], return_text_replacement_offsets=True, **asked, **given)
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:  # its config lacks a number, say
            raise UserError(
                f"lmm.path: the processor of {self.name} cannot lay out {'a medium' if media else 'text'} "
                f"({reason_of(error)}); {WHOLE_PROCESSOR}"
            ) from error

    def given(self, media: Sequence[Medium], modality: str) -> dict[str, Any]:
        """What the processor is called with beside the text."""
        if modality == "image":
            return {"images": list(media) if self.kind.flat else [list(media)]}
        if modality == "audio":
            waves = [self.wave(sound) for sound in media]
            return {"audio": waves, "audio_kwargs": {"sampling_rate": self.rate}}
        clips = [self.frames(clip) for clip in media]
        told = [{"fps": fps, "total_num_frames": num, "frames_indices": chosen} for _, fps, num, chosen in clips]
        return {
            "videos": [frames for frames, *_ in clips],
            "videos_kwargs": {"do_sample_frames": False, "video_metadata": told},
        }

    @property
    def rate(self) -> int:
        ears = getattr(self.processor, "feature_extractor", None) or self.processor.audio_processor
        return int(ears.sampling_rate)

    def wave(self, sound: Medium) -> np.ndarray:
        assert isinstance(sound, Sound)
        wave = torch.from_numpy(np.ascontiguousarray(sound.wave))
        return wave.numpy() if sound.rate == self.rate else resampled(wave, sound.rate, self.rate).numpy()

    def frames(self, clip: Medium) -> tuple[np.ndarray, float, int, list[int]]:
        """(frames, height, width, 3), and where they come from."""
        assert isinstance(clip, Clip)
        num = min(self.num_frames, clip.num_frames)
        chosen = [index * clip.num_frames // num for index in range(num)]
        return np.stack([np.asarray(frame) for frame in clip.frames(chosen)]), clip.fps, clip.num_frames, chosen


def placeholder_ids(config: Any) -> set[int]:
    """Ids under which the model puts features, wherever its config keeps them."""
    places = [config, getattr(config, "vision_config", None), getattr(config, "audio_config", None)]
    found = (getattr(place, name, None) for place in places for name in ID_NAMES if place is not None)
    return {int(value) for value in found if isinstance(value, int)}


def halves(text: str) -> tuple[str, str]:
    before, _, behind = text.partition(MARK)
    return before, behind


def roles_of(
    ids: Sequence[int],
    offsets: Sequence[Sequence[int]],
    spans: Sequence[Sequence[int]],
    placeholders: set[int],
    asked: tuple[int, int],
) -> list[int]:
    """Of each token. offsets: its characters; spans: those written for media; asked: those of the question."""
    roles = []
    for token, (low, high) in zip(ids, offsets, strict=True):
        role = Role.SPECIAL
        if any(start <= low and high <= stop for start, stop in spans) and high > low:
            role = Role.PERCEPT if token in placeholders else Role.SPECIAL
        elif low < asked[1] and high > asked[0] and high > low:
            role = Role.PROMPT
        roles.append(int(role))
    return roles


def joined(values: Sequence[Tensor]) -> Tensor:
    """Along the first dimension; what is smaller in others (pictures in fewer tiles) is filled with zeros."""
    shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    filled = []
    for value in values:
        room = value.new_zeros((len(value), *shape))
        room[tuple(slice(size) for size in value.shape)] = value
        filled.append(room)
    return torch.cat(filled)
