"""Texts out of lm-eval's tasks: values of their files for messages, and items as a model reads them."""

import random
from collections.abc import Mapping
from typing import Any

from langext.errors import one_line


def shown(value: Any) -> str:
    """A value of a task file for a message. Of a list or an object only the kind: YAML's aliases make a small file large."""
    match value:
        case str():
            return repr(one_line(value))
        case dict() | list():
            return "an object" if isinstance(value, dict) else "a list"
        case bool() | float() | None:
            return repr(value)
        case int() if abs(value) < 10**15:
            return repr(value)
        case _:
            return f"a value of type {type(value).__name__}"


def some(tasks: Mapping[str, Any], most: int) -> dict[str, list[int]]:
    """Task -> numbers of at most `most` of its items: chance, but always the same.

    The first ones would be of one kind where the file of a task is sorted, as many are.
    """
    counts = {name: len(task.eval_docs) for name, task in tasks.items()}
    return {name: sorted(random.Random(0).sample(range(count), min(most, count))) for name, count in counts.items()}


def of_item(task: Any, doc: Any) -> tuple[str, ...]:
    """What a model reads of an item of an lm-eval task: the question, with every answer that is tried or that is right."""
    target = task.doc_to_target(doc)
    if getattr(task, "multiple_input", 0):
        return tuple(f"{context} {target}" for context in task.doc_to_choice(doc))
    requests = task.construct_requests(doc=doc, ctx=task.doc_to_text(doc))
    requests = requests if isinstance(requests, list) else [requests]
    texts = ["".join(part for part in request.args if isinstance(part, str)) for request in requests]
    answers = target if isinstance(target, list) else [target]  # of a task that lets the model write; else a number
    return tuple(f"{text} {answer}" for text in texts for answer in answers if isinstance(answer, str)) or tuple(texts)
