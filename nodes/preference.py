"""Preference: which picture is better, or whether one is good, appended to a dataset that the trainer takes unchanged.

Asked on the node, a choice waits in memory until somebody clicks (``routes.py``); the queue does not wait for it.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from torch import Tensor

from ..trainer.data import pairs_file
from ..trainer.errors import UserError
from . import graph as graphs
from . import host
from .node import In, Node, Out, Result

ASK, TIE = -1, -2
MOST_WAITING = 200
"""Older unanswered questions are forgotten."""


@dataclass(frozen=True)
class Question:
    """Pictures that wait for a word."""

    folder: Path
    prompt: str
    pictures: list[bytes]
    """PNG."""
    seeds: list[int | None]
    rate: bool
    """Each is liked or not, instead of one being the best."""


_waiting: OrderedDict[str, Question] = OrderedDict()
_lock = Lock()


def ask(question: Question) -> str:
    """Remember a question; the token that answers it, unguessable."""
    token = os.urandom(16).hex()
    with _lock:
        _waiting[token] = question
        while len(_waiting) > MOST_WAITING:
            _waiting.popitem(last=False)
    return token


def answer(token: str, winner: int | None = None, liked: list[bool | None] | None = None) -> str:
    """Write the answer of a question; what was written, in words. A question can be answered once."""
    with _lock:
        question = _waiting.pop(token, None)
    if question is None:
        raise UserError("choice: it was made already, or ComfyUI was restarted since; queue again")
    try:
        return rate(question, liked or []) if question.rate else choose(question, ASK if winner is None else winner)
    except (OSError, UserError):
        with _lock:
            _waiting[token] = question
        raise


def choose(question: Question, winner: int) -> str:
    """Append the best picture's pairs with the others. ``winner`` counts from 0; TIE writes one tie of two pictures."""
    count = len(question.pictures)
    if winner == TIE and count != 2:
        raise UserError(f"winner: a tie needs two pictures, here are {count}; choose one of them")
    if winner != TIE and not 0 <= winner < count:
        raise UserError(f"winner: there is no picture {winner}; there are 0 to {count - 1}")
    best = 0 if winner == TIE else winner
    others = [picture for i, picture in enumerate(question.pictures) if i != best]
    rows = pairs_file.add_best(
        question.folder, question.prompt, question.pictures[best], others, tie=winner == TIE,
        seed=question.seeds[best], source="comfyui",
    )  # fmt: skip
    return f"{question.folder.name}: {'a tie' if winner == TIE else f'{len(rows)} pair' + 's' * (len(rows) > 1)} added"


def rate(question: Question, liked: list[bool | None]) -> str:
    """Append a rating for each picture that got one."""
    if len(liked) != len(question.pictures):
        raise UserError(f"liked: {len(liked)} answers for {len(question.pictures)} pictures; give one for each")
    rated = [(i, yes) for i, yes in enumerate(liked) if yes is not None]
    for i, yes in rated:
        pairs_file.add_rating(
            question.folder, question.prompt, question.pictures[i], yes, seed=question.seeds[i], source="comfyui"
        )
    return f"{question.folder.name}: {len(rated)} rating{'s' * (len(rated) != 1)} added"


# --------------------------------------------------------------------------------------------------------------- nodes


def _question(
    sockets: dict[str, Tensor], dataset: str, prompt: str, seed: int, graph: Any, node_id: Any, rate: bool
) -> tuple[Question, list[dict[str, str]]]:
    """Collect the pictures, their prompt and seeds; what the page shows."""
    pictures, seeds, prompts = [], [], []
    for socket, images in sockets.items():
        of_graph, found = graphs.origin(graph or {}, str(node_id), socket)
        some = host.pictures(images)
        pictures += some
        seeds += [found if seed < 0 else seed] * len(some)
        prompts += [of_graph] if of_graph else []
    text = (prompt or "").strip() or next(iter(prompts), "")
    if not text:
        raise UserError("prompt: the graph does not tell which prompt made the picture; connect or type it")
    if not prompt and len(set(prompts)) > 1:
        raise UserError("prompt: the pictures come from different prompts; a preference needs pictures of one prompt")
    folder = host.place(host.DATA, dataset)
    question = Question(folder, text, [host.png(picture) for picture in pictures], seeds, rate)
    return question, host.show(pictures, "pixelkiln_preference")


def _prefer(
    images: Tensor, dataset: str, winner: int, prompt: str = "", picture_seed: int = -1, images_b: Tensor | None = None,
    graph: Any = None, node_id: Any = None,
) -> Result:  # fmt: skip
    sockets = {"images": images} | ({"images_b": images_b} if images_b is not None else {})
    question, shown = _question(sockets, dataset, prompt, picture_seed, graph, node_id, rate=False)
    if len(question.pictures) < 2:
        raise UserError("images: there is only one picture; give a batch, or a second one as images_b")
    token = ""
    if winner == ASK:
        token, message = ask(question), f"{dataset}: waiting for your choice"
    else:
        message = choose(question, winner)
    ui = {
        "pixelkiln_choice": [{"token": token, "kind": "best", "said": message, "images": shown}],
        **host.text(message),
    }
    best = 0 if winner in (ASK, TIE) else winner
    flat = [one[None] for batch in sockets.values() for one in batch]
    return Result((flat[best], str(question.folder), message), ui)


def _like(
    images: Tensor,
    dataset: str,
    liked: str,
    prompt: str = "",
    picture_seed: int = -1,
    graph: Any = None,
    node_id: Any = None,
) -> Result:
    question, shown = _question({"images": images}, dataset, prompt, picture_seed, graph, node_id, rate=True)
    token = ""
    if liked == "ask":
        token, message = ask(question), f"{dataset}: waiting for your thumbs"
    else:
        message = rate(question, [liked == "yes"] * len(question.pictures))
    ui = {
        "pixelkiln_choice": [{"token": token, "kind": "rate", "said": message, "images": shown}],
        **host.text(message),
    }
    return Result((str(question.folder), message), ui)


_DATASET = In("dataset", "STRING", "Name of the dataset's folder, in the pack's data folder.", default="preferences")
_PROMPT = In("prompt", "STRING", "The prompt that made the pictures; empty takes it from the graph.", default="",
             multiline=True, optional=True)  # fmt: skip
_SEED = In("picture_seed", "INT", "The seed that made the pictures; -1 takes it from the graph.", default=-1, low=-1,
           high=2**63 - 1, optional=True, advanced=True)  # fmt: skip
_IMAGES = In("images", "IMAGE", "The pictures to compare.")

PREFERENCE = Node(
    id="PixelkilnPreference",
    name="Preference (Pixelkiln)",
    about="Which picture is better? Click it on the node, or give its number; the pair is appended to a dataset for "
    "preference training, with prompt and seed from the graph. Of more than two the best makes a pair with each other.",
    run=_prefer,
    inputs=(
        _IMAGES,
        _DATASET,
        In("winner", "INT", "-1: ask on the node. 0, 1, ...: this picture is the best. -2: a tie of two.", default=ASK,
           low=TIE, high=63),
        _PROMPT,
        _SEED,
        In("images_b", "IMAGE", "More pictures of the same prompt, from another sampler or adapter.", optional=True),
    ),
    outputs=(
        Out("winner", "IMAGE", "The best picture; the first when it is asked on the node or a tie."),
        Out("dataset", "STRING", "The dataset's folder, for Train."),
        Out("said", "STRING", "What was written."),
    ),
    group="preference",
    aliases=("dpo", "pick", "choose image", "rank"),
    output=True,
    knows_graph=True,
)  # fmt: skip
RATE = Node(
    id="PixelkilnRate",
    name="Thumbs (Pixelkiln)",
    about="Is the picture good? Thumbs up or down on the node, or given; appended to a dataset for "
    "training on ratings.",
    run=_like,
    inputs=(
        _IMAGES, _DATASET,
        In("liked", "COMBO", "Ask on the node, or the same answer for all pictures.", default="ask",
           options=("ask", "yes", "no")),
        _PROMPT, _SEED,
    ),
    outputs=(Out("dataset", "STRING", "The dataset's folder, for Train."), Out("said", "STRING", "What was written.")),
    group="preference",
    aliases=("kto", "like", "rating"),
    output=True,
    knows_graph=True,
)  # fmt: skip
NODES = (PREFERENCE, RATE)
