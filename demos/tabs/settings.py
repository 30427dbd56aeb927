"""The folded settings: how to erase, derived from the methods' own fields."""

from __future__ import annotations

from typing import Any

import gradio as gr

from concept_erase import methods
from concept_erase.schema import Job as Settings

from .. import forms
from ..studio import Defaults
from .common import fold


class Advanced:
    """Method, its settings, pictures, steps; everything has a default, so nobody needs to open it."""

    def __init__(self, prefix: str, defaults: Defaults, *, anchor: bool = True) -> None:
        told = {name: field.description or "" for name, field in Settings.model_fields.items()}
        names = methods.available()
        first = str(Settings.model_fields["method"].default)
        self.anchor: gr.Textbox | None = None
        self._fields: list[tuple[str, str, Any]] = []
        with fold("Advanced settings", f"{prefix}-advanced"):
            if anchor:
                self.anchor = gr.Textbox(
                    label="What it becomes", info="The nearest harmless concept is chosen if you leave this empty.",
                    max_length=400, elem_id=f"{prefix}-anchor",
                )  # fmt: skip
            with gr.Row():
                self.pictures = gr.Number(
                    defaults.pictures, label="Pictures", minimum=0, maximum=2000, precision=0,
                    info="To score on, of each group; more make the intervals narrower. 0 does not score.",
                    elem_id=f"{prefix}-pictures",
                )  # fmt: skip
                self.steps = gr.Number(
                    defaults.steps, label="Steps", minimum=1, maximum=200, precision=0, info=told["steps"],
                    elem_id=f"{prefix}-steps",
                )  # fmt: skip
            self.method = gr.Dropdown(
                [(f"{name}: {methods.describe(name).summary}", name) for name in names], value=first, label="Method",
                elem_id=f"{prefix}-method", filterable=False,
            )  # fmt: skip
            # All forms are there from the start, so that none has to be sent; the page shows that of the method.
            with gr.Column(elem_id=f"{prefix}-methods", elem_classes="ce-methods"):
                for name in names:
                    shown = " ce-chosen" if name == first else ""
                    with gr.Group(elem_classes=f"ce-settings ce-of-{name}{shown}"):
                        self._form(prefix, name)
            self.half = gr.Checkbox(False, label="Half size", info=told["half"], elem_id=f"{prefix}-half")
        self.method.change(
            None, self.method, None, js=f"(method) => window.ceMethod('{prefix}', method)", api_visibility="private"
        )
        own = [self.anchor] if self.anchor is not None else []
        self.inputs = [*own, self.method, self.pictures, self.steps, self.half, *(c for _, _, c in self._fields)]

    def _form(self, prefix: str, method: str) -> None:
        fields = forms.fields(method)
        for start in range(0, len(fields), 2):
            with gr.Row():
                for field in fields[start : start + 2]:
                    where = f"{prefix}-{method}-{field.name}"
                    shared: dict[str, Any] = {"label": field.label, "info": field.meaning, "elem_id": where}
                    made: Any
                    if field.form == "switch":
                        made = gr.Checkbox(field.default, **shared)
                    elif field.form == "choice":
                        made = gr.Dropdown(list(field.choices), value=field.default, filterable=False, **shared)
                    elif field.form == "number":
                        made = gr.Number(field.default, precision=0 if field.whole else None, **shared)
                    else:
                        hint = "chosen for you" if field.optional and not field.default else ""
                        made = gr.Textbox(str(field.default), placeholder=hint, max_length=100, **shared)
                    self._fields.append((method, field.name, made))

    def read(self, *values: Any) -> dict[str, Any]:
        """What was filled in, as arguments of `Studio.settings`; only the chosen method's fields count."""
        rest = list(values)
        anchor = rest.pop(0) if self.anchor is not None else None
        method, pictures, steps, half = rest[:4]
        settings = {
            name: value for (owner, name, _), value in zip(self._fields, rest[4:], strict=True) if owner == method
        }
        found = {"method": method, "pictures": pictures, "steps": steps, "half": half, "settings": settings}
        return {**found, "anchor": anchor} if self.anchor is not None else found
