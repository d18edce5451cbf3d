"""The tables and the chart."""

from html import escape
from statistics import median

from rows import OURS

# Readable on a white and on a dark page.
COLOURS = {"nginx": "#2f9e5b", "nginx-sendfile": "#8fbf8f", "HAProxy": "#3f7fc4", "Envoy": "#b266c9", "bare hyper": "#8a8f98"}
OUR_COLOURS = ("#e0712c", "#c9a227", "#b5483c")


def columns(results):
    """Everyone who has a figure somewhere, in the order of their appearance."""
    names = []
    for _, series in results:
        names += [one.name for one in series if one.name not in names]
    return names


def table(results):
    """Everything measured."""
    names = columns(results)
    lines = ["| | " + " | ".join(names) + " |", "|---" + "|--:" * len(names) + "|"]
    for row, series in results:
        cells = {one.name: cell(row, one) for one in series}
        lines.append(f"| {row.title}, {row.unit} | " + " | ".join(cells.get(name, "") for name in names) + " |")
    return "\n".join(lines)


def cell(row, one):
    """The median, and between what it lay."""
    if one.fault or not one.values:
        return "–"
    if len(one.values) == 1:
        return number(one.middle(), row.digits)
    return f"{number(one.middle(), row.digits)} ({number(min(one.values), row.digits)}–{number(max(one.values), row.digits)})"


def number(value, digits):
    return f"{value:,.{digits}f}"


def rates(results):
    """Requests per second where the proxy had its core to itself and no more to give."""
    found = [(row, [(one.name, one.rate()) for one in series if one.rate()]) for row, series in results]
    lines = [
        f"| {row.title} | " + ", ".join(f"{name} {rate:,.0f}" for name, rate in pairs) + " |" for row, pairs in found if pairs
    ]
    return "\n".join(["| requests per second, where the core was at least 95 % busy | |", "|---|---|", *lines]) if lines else ""


def verdicts(results):
    """Each limit of each row, for each build of ours: row, build, limit, and median and spread of what it is about."""
    for row, series in results:
        by_name = {one.name: one for one in series}
        for ours in series:
            for limit in row.limits if ours.ours else ():
                theirs = by_name.get(limit.of)
                if limit.of is None:
                    figures = sorted(ours.values)
                elif theirs is None or theirs.fault:
                    figures = []
                else:
                    # In the same round: what disturbs one disturbs the other.
                    figures = sorted(a / b for a, b in zip(ours.values, theirs.values) if b > 0)
                yield row, ours, limit, [] if ours.fault else figures


def limits(results):
    """What is promised, and whether it held."""
    lines = ["| | limit | measured | |", "|---|---|--:|---|"]
    for row, ours, limit, figures in verdicts(results):
        title = row.title if ours.name == OURS else f"{row.title}, {ours.name}"
        if not figures:
            lines.append(f"| {title} | {limit.text(row.unit)} | | not measured |")
            continue
        unit, digits = (" ×", 2) if limit.of else (f" {row.unit}", row.digits)
        spread = f" ({number(figures[0], digits)}–{number(figures[-1], digits)})" if len(figures) > 1 else ""
        held = "held" if limit.holds(median(figures)) else "**not held**"
        lines.append(f"| {title} | {limit.text(row.unit)} | {number(median(figures), digits)}{unit}{spread} | {held} |")
    return "\n".join(lines)


def growth(results):
    """The cost of a request with more of something, as a multiple of that with the least."""
    lines = ["| | cost of a hit, relative to the first | most | |", "|---|---|--:|---|"]
    for row, contestant, series in results:
        steps, worst = [], 0
        for one in series:
            if one.fault or series[0].fault:
                steps.append(f"{one.name}: –")
                continue
            multiple = median(a / b for a, b in zip(one.values, series[0].values))
            worst = max(worst, multiple)
            steps.append(f"{one.name}: {multiple:.2f} ({one.middle():.1f} µs)")
        title = row.title if contestant.name == OURS else f"{row.title}, {contestant.name}"
        held = "held" if worst <= row.most and not any(one.fault for one in series) else "**not held**"
        judged = f"≤ {row.most} × | {held}" if contestant.ours else "|"
        lines.append(f"| {title} | {' · '.join(steps)} | {judged} |")
    return "\n".join(lines)


def faults(results):
    """Why somebody has no figure."""
    found = [(row, one) for row, series in results for one in series if one.fault]
    return "\n".join(f"* {row.title}, {one.name}, is left out: {' '.join(one.fault.split())}" for row, one in found)


def latencies(results):
    """The whole of it, where only what is added stands in the table."""
    lines = []
    for row, series in results:
        for one in series:
            if one.notes and not one.fault:
                p50, p99, p999 = (median(note[name] for note in one.notes) for name in ("p50", "p99", "p999"))
                lines.append(f"| {one.name} | {p50:,.0f} | {p99:,.0f} | {p999:,.0f} |")
    head = ["| latency at 2000/s, µs, upstream's included | 50 % | 99 % | 99.9 % |", "|---|--:|--:|--:|"]
    return "\n".join(head + lines) if lines else ""


def chart(results):
    """Bars of what a request costs, a group for each kind."""
    groups = []
    for row, series in results:
        bars = [(one.name, one.middle(), one.ours) for one in series if row.unit == "µs" and one.values and not one.fault]
        if bars and not any(one.notes for one in series):
            groups.append((row.title, bars))
    if not groups:
        return ""
    ours = [name for name, _, mine in (bar for _, bars in groups for bar in bars) if mine]
    colours = dict(COLOURS) | {name: OUR_COLOURS[at % 3] for at, name in enumerate(dict.fromkeys(ours))}
    width, left, bar = 860, 280, 15
    widest = max(value for _, bars in groups for _, value, _ in bars)
    scale = (width - left - 130) / widest
    parts, y = [], 46
    for title, bars in groups:
        parts.append(f'<text x="{left - 12}" y="{y + 12}" text-anchor="end" class="title">{escape(title)}</text>')
        for name, value, mine in bars:
            length = max(1.0, value * scale)
            parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 3}" rx="2" fill="{colours[name]}"/>')
            weight = ' class="ours"' if mine else ""
            parts.append(f'<text x="{left + length + 6:.1f}" y="{y + 10}"{weight}>{value:.1f} {escape(name)}</text>')
            y += bar
        y += 14
    style = (
        "text{font:12px system-ui,sans-serif;fill:#24292f}.title{font-size:13px}.ours{font-weight:600}"
        "@media(prefers-color-scheme:dark){text{fill:#d8dee4}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" height="{y}" role="img">'
        f"<title>CPU time per request, microseconds</title><style>{style}</style>"
        f'<text x="{left}" y="24" class="title">CPU time per request, µs (less is better)</text>{"".join(parts)}</svg>\n'
    )
