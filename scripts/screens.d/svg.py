#!/usr/bin/env python3
"""Makes a picture (SVG) of a terminal's text: tmux capture-pane -e -p | svg.py TITLE >FILE

Understands what loopfs prints: bold, faint, reversed, nothing else. The text in the picture is text, so that it can be
searched and copied, and a terminal's font is not needed."""

import re
import sys
from xml.sax.saxutils import escape

WIDTH, HEIGHT, MARGIN, BAR = 8.4, 17, 12, 26
STYLE = """
  text { font: 14px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; fill: #d8dee9; white-space: pre }
  .bold { font-weight: bold; fill: #ffffff }
  .faint { fill: #8b95a5 }
  .reversed { fill: #1d2129 }
  .title { fill: #8b95a5; font-size: 13px }
"""


def runs(line):
    """The parts of a line with their styles: bold, faint, reversed."""
    styles, found = set(), []
    for part in re.split(r"(\x1b\[[0-9;]*[A-Za-z])", line):
        if not part.startswith("\x1b"):
            if part:
                found.append((part, frozenset(styles)))
        elif part.endswith("m"):
            for code in part[2:-1].split(";"):
                name = {"1": "bold", "2": "faint", "7": "reversed"}.get(code)
                if name:
                    styles.add(name)
                elif code in ("", "0"):
                    styles.clear()
                elif code == "22":
                    styles -= {"bold", "faint"}
                elif code == "27":
                    styles.discard("reversed")
    return found


def picture(title, text):
    lines = [runs(line) for line in text.rstrip("\n").split("\n")]
    columns = max([60] + [sum(len(part) for part, _ in line) for line in lines])
    width = round(2 * MARGIN + columns * WIDTH)
    height = round(BAR + 2 * MARGIN + len(lines) * HEIGHT)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#1d2129"/>',
        f'<text class="title" x="{MARGIN}" y="18">{escape(title)}</text>',
    ]
    for row, line in enumerate(lines):
        y, column = BAR + MARGIN + row * HEIGHT, 0
        for part, styles in line:
            x = MARGIN + column * WIDTH
            if "reversed" in styles:
                out.append(
                    f'<rect x="{x:.1f}" y="{y}" width="{len(part) * WIDTH:.1f}" height="{HEIGHT}" fill="#d8dee9"/>'
                )
            if part.strip():
                kind = " ".join(sorted(styles))
                attribute = f' class="{kind}"' if kind else ""
                length = f'textLength="{len(part) * WIDTH:.1f}" lengthAdjust="spacingAndGlyphs"'
                out.append(f'<text{attribute} x="{x:.1f}" y="{y + 13}" {length}>{escape(part)}</text>')
            column += len(part)
    out.append("</svg>")
    return "\n".join(out) + "\n"


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: svg.py TITLE <TEXT >PICTURE")
    sys.stdout.write(picture(sys.argv[1], sys.stdin.read()))


if __name__ == "__main__":
    main()
