"""From times to ratios: a table in Markdown, and a chart."""

import math
import statistics
from xml.sax.saxutils import escape

STRAYS = 0.10  # of the control from 1, above which a row says little


def ratios(times, workload, place):
    """Each round's time in the place, in units of the same round's on the plain directory."""
    pairs = times.get((workload, place), {}), times.get((workload, "native"), {})
    return [pairs[0][r] / pairs[1][r] for r in sorted(pairs[0]) if pairs[1].get(r)]


def number(value):
    """With as many digits as mean something."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cpu_of_all(cpu, places):
    """What each daemon has taken for the workloads that all of them did."""
    both = [found for found in cpu.values() if all(place in found for place in places)]
    return {place: sum(sum(found[place]) for found in both) for place in places}


def table(times, workloads, places, cpu):
    """The table in Markdown."""
    others = [place for place in places if place != "native"]
    lines = ["| workload | native, ms | " + " | ".join(others) + " |", "|---" * (len(others) + 2) + "|"]
    for workload in workloads:
        native = times.get((workload, "native"), {})
        if not native:
            continue
        cells = []
        strays = False
        for place in others:
            found = ratios(times, workload, place)
            if not found:
                cells.append("-")
                continue
            median = statistics.median(found)
            if place == "bind" and abs(median - 1) > STRAYS:
                strays = True
            low, high = min(found), max(found)
            cells.append(f"{number(median)} ({number(low)}-{number(high)})")
        mark = " \\*" if strays else ""
        lines.append(f"| {workload}{mark} | {statistics.median(native.values()) * 1000:.1f} | {' | '.join(cells)} |")
    if cpu:
        cells = [f"{cpu[place]:.1f}" if place in cpu else "-" for place in others]
        lines.append(f"| CPU of the daemon, s, where all have a figure | - | {' | '.join(cells)} |")
    return "\n".join(lines)


COLOURS = ["#9aa0a6", "#1a73e8", "#34a853", "#8e44ad", "#f9ab00", "#ea4335", "#00acc1", "#795548", "#e91e63", "#607d8b", "#afb42b"]


BEGIN, END = "<!-- scripts/bench --docs writes from here -->", "<!-- to here -->"


def put_between(text, table):
    """A text with another table where it has the last one."""
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{BEGIN}\n{table}{END}{after}"


def chart(times, workloads, places, title):
    """Points on a logarithmic scale, a row for each workload, as SVG."""
    others = [place for place in places if place != "native"]
    rows = [w for w in workloads if any(ratios(times, w, place) for place in others)]
    left, top, width, step = 170, 60, 620, 22
    highest = max((statistics.median(ratios(times, w, p)) for w in rows for p in others if ratios(times, w, p)), default=2)
    decades = math.log10(max(highest * 1.2, 2) / 0.5)
    height = top + step * len(rows) + 30

    def x(ratio):
        return left + width * math.log10(max(ratio, 0.5) / 0.5) / decades

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 20}" height="{height}" '
           'font-family="sans-serif" font-size="12">',
           f'<rect width="100%" height="100%" fill="#ffffff"/><text x="10" y="18" font-size="14">{escape(title)}</text>']
    at = 10
    for index, place in enumerate(others):
        out.append(f'<circle cx="{at + 5}" cy="36" r="5" fill="{COLOURS[index % len(COLOURS)]}"/>'
                   f'<text x="{at + 14}" y="40">{escape(place)}</text>')
        at += 24 + 6.5 * len(place)
    for ratio in (0.5, 1, 2, 5, 10, 20, 50, 100):
        if x(ratio) <= left + width:
            out.append(f'<line x1="{x(ratio):.1f}" y1="{top - 8}" x2="{x(ratio):.1f}" y2="{height - 22}" '
                       f'stroke="{"#202124" if ratio == 1 else "#dadce0"}"/>'
                       f'<text x="{x(ratio):.1f}" y="{height - 8}" text-anchor="middle">{ratio}</text>')
    for line, workload in enumerate(rows):
        y = top + step * line + 6
        out.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(workload)}</text>')
        for index, place in enumerate(others):
            found = ratios(times, workload, place)
            if found:
                colour = COLOURS[index % len(COLOURS)]
                out.append(f'<line x1="{x(min(found)):.1f}" y1="{y}" x2="{x(max(found)):.1f}" y2="{y}" stroke="{colour}" '
                           'stroke-opacity="0.4" stroke-width="3"/>'
                           f'<circle cx="{x(statistics.median(found)):.1f}" cy="{y}" r="4.5" fill="{colour}"/>')
    out.append("</svg>")
    return "\n".join(out) + "\n"
