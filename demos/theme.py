"""The look: paper, ink and one warm accent, in light and in dark; system fonts, nothing fetched from anywhere."""

from __future__ import annotations

from pathlib import Path

from gradio.themes import Base
from gradio.themes.utils import sizes
from gradio.themes.utils.colors import Color

STATIC = Path(__file__).with_name("static")
WIDTH = 1040  # pixels of the one column

TERRACOTTA = Color(
    name="terracotta",
    c50="#fbf3ef", c100="#f6e5dd", c200="#eccab9", c300="#e0a78e", c400="#d58466", c500="#c4623f",
    c600="#ad4b2b", c700="#8f3c22", c800="#75331f", c900="#5e2a1b", c950="#33150d",
)  # fmt: skip
PAPER = Color(
    name="paper",
    c50="#faf8f5", c100="#f3f0eb", c200="#e6e1d9", c300="#d2cbc0", c400="#a39b8f", c500="#7a7268",
    c600="#5e574f", c700="#46413b", c800="#2b2825", c900="#1d1b19", c950="#141312",
)  # fmt: skip
SANS = ("Inter", "ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")


class Quiet(Base):
    """A calm page: hairlines instead of boxes, ink for the one button that matters."""

    def __init__(self) -> None:
        super().__init__(
            primary_hue=TERRACOTTA,
            secondary_hue=PAPER,
            neutral_hue=PAPER,
            text_size=sizes.text_md,
            spacing_size=sizes.spacing_md,
            radius_size=sizes.radius_lg,
            font=SANS,
            font_mono=MONO,
        )
        self.name = "quiet"
        super().set(
            body_background_fill="*neutral_50",
            body_background_fill_dark="*neutral_950",
            body_text_color="*neutral_900",
            body_text_color_dark="#f1eeea",
            body_text_color_subdued="*neutral_600",
            body_text_color_subdued_dark="*neutral_400",
            background_fill_primary="#ffffff",
            background_fill_primary_dark="*neutral_900",
            background_fill_secondary="*neutral_100",
            background_fill_secondary_dark="#211f1d",
            border_color_primary="*neutral_200",
            border_color_primary_dark="#35312d",
            border_color_accent="*primary_600",
            border_color_accent_dark="*primary_400",
            color_accent="*primary_600",
            color_accent_soft="*primary_50",
            color_accent_soft_dark="#3a231b",
            link_text_color="*primary_700",
            link_text_color_dark="*primary_300",
            block_background_fill="transparent",
            block_background_fill_dark="transparent",
            block_border_width="0px",
            block_shadow="none",
            block_padding="0px",
            block_label_background_fill="transparent",
            block_label_background_fill_dark="transparent",
            block_label_border_width="0px",
            block_label_text_color="*body_text_color",
            block_label_text_color_dark="*body_text_color",
            block_label_text_weight="600",
            block_title_text_color="*body_text_color",
            block_title_text_color_dark="*body_text_color",
            block_title_text_weight="600",
            block_title_text_size="*text_md",
            block_info_text_color="*body_text_color_subdued",
            block_info_text_color_dark="*body_text_color_subdued",
            panel_background_fill="transparent",
            panel_background_fill_dark="transparent",
            panel_border_width="0px",
            layout_gap="22px",
            form_gap_width="0px",
            input_background_fill="#ffffff",
            input_background_fill_dark="*neutral_900",
            input_border_color="*neutral_300",
            input_border_color_dark="#4a453f",
            input_border_color_focus="*primary_600",
            input_border_color_focus_dark="*primary_400",
            input_border_width="1px",
            input_radius="10px",
            input_shadow="none",
            input_shadow_focus="0 0 0 3px *primary_100",
            input_shadow_focus_dark="0 0 0 3px #4b2b20",
            input_placeholder_color="*neutral_500",
            input_placeholder_color_dark="#8f877c",
            button_large_radius="999px",
            button_medium_radius="999px",
            button_small_radius="999px",
            button_large_padding="13px 30px",
            button_large_text_weight="600",
            button_medium_text_weight="500",
            button_border_width="1px",
            button_primary_background_fill="*neutral_900",
            button_primary_background_fill_dark="#f1eeea",
            button_primary_background_fill_hover="*neutral_700",
            button_primary_background_fill_hover_dark="#ffffff",
            button_primary_border_color="*neutral_900",
            button_primary_border_color_dark="#f1eeea",
            button_primary_border_color_hover="*neutral_700",
            button_primary_border_color_hover_dark="#ffffff",
            button_primary_text_color="#ffffff",
            button_primary_text_color_dark="*neutral_950",
            button_primary_text_color_hover="#ffffff",
            button_primary_text_color_hover_dark="*neutral_950",
            button_secondary_background_fill="transparent",
            button_secondary_background_fill_dark="transparent",
            button_secondary_background_fill_hover="*neutral_100",
            button_secondary_background_fill_hover_dark="#2b2825",
            button_secondary_border_color="*neutral_300",
            button_secondary_border_color_dark="#4a453f",
            button_secondary_border_color_hover="*neutral_400",
            button_secondary_border_color_hover_dark="#6a635a",
            button_secondary_text_color="*body_text_color",
            button_secondary_text_color_dark="*body_text_color",
            button_cancel_background_fill="transparent",
            button_cancel_background_fill_dark="transparent",
            button_cancel_background_fill_hover="*primary_50",
            button_cancel_background_fill_hover_dark="#3a231b",
            button_cancel_border_color="*primary_600",
            button_cancel_border_color_dark="*primary_400",
            button_cancel_text_color="*primary_700",
            button_cancel_text_color_dark="*primary_300",
            checkbox_background_color_selected="*neutral_900",
            checkbox_background_color_selected_dark="*primary_500",
            checkbox_border_color_selected="*neutral_900",
            checkbox_border_color_selected_dark="*primary_500",
            checkbox_label_background_fill="transparent",
            checkbox_label_background_fill_dark="transparent",
            checkbox_label_background_fill_hover="*neutral_100",
            checkbox_label_background_fill_hover_dark="#2b2825",
            checkbox_label_background_fill_selected="*neutral_900",
            checkbox_label_background_fill_selected_dark="#f1eeea",
            checkbox_label_text_color_selected="#ffffff",
            checkbox_label_text_color_selected_dark="*neutral_950",
            checkbox_label_border_color="*neutral_300",
            checkbox_label_border_color_dark="#4a453f",
            checkbox_label_border_width="1px",
            checkbox_label_shadow="none",
            slider_color="*neutral_900",
            slider_color_dark="#f1eeea",
            loader_color="*primary_600",
            loader_color_dark="*primary_400",
            error_background_fill="*primary_50",
            error_background_fill_dark="#3a231b",
            error_border_color="*primary_300",
            error_border_color_dark="*primary_700",
            error_text_color="*primary_800",
            error_text_color_dark="*primary_200",
            table_border_color="*neutral_200",
            table_border_color_dark="#35312d",
            table_even_background_fill="transparent",
            table_even_background_fill_dark="transparent",
            table_odd_background_fill="transparent",
            table_odd_background_fill_dark="transparent",
        )


def style() -> str:
    """The style sheet."""
    return (STATIC / "style.css").read_text(encoding="utf-8")


def head() -> str:
    """What goes into the page's head: the script behind sliders, pickers and veils."""
    script = (STATIC / "page.js").read_text(encoding="utf-8")
    return f'<meta name="color-scheme" content="light dark"><script>{script}</script>'
