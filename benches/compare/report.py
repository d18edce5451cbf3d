"""The table and the chart."""

from statistics import median

from rows import OURS


def ratio(ours, theirs):
    """Ours over theirs in the same round, median and spread: what disturbs a round disturbs both."""
    ratios = sorted(a / b for a, b in zip(ours.micros, theirs.micros))
    return median(ratios), ratios[0], ratios[-1]


def verdicts(row, series):
    """Each limit of a row, for each build of ours."""
    by_name = {one.name: one for one in series}
    for ours in series:
        if not ours.contestant.ours or ours.fault:
            continue
        for limit in row.limits:
            theirs = by_name.get(limit.of)
            if theirs is None or theirs.fault:
                yield ours, limit, None
            else:
                yield ours, limit, ratio(ours, theirs)


def table(results):
    """Everything measured, as Markdown."""
    names = []
    for _, series in results:
        names += [one.name for one in series if one.name not in names]
    lines = ["| CPU per request, µs | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row, series in results:
        cells = {one.name: cell(one) for one in series}
        lines.append(f"| {row.title} | " + " | ".join(cells.get(name, "") for name in names) + " |")
    return "\n".join(lines)


def cell(one):
    if one.fault or not one.micros:
        return "–"
    low, high = one.spread()
    rate = one.rate()
    return f"{one.middle():.2f} ({low:.2f}–{high:.2f})" + (f", {rate / 1000:.1f} k/s" if rate else "")


def limits(results):
    """What was promised, and whether it was held."""
    lines = ["| | limit | measured (rounds) | |", "|---|---|---|---|"]
    for row, series in results:
        for ours, limit, found in verdicts(row, series):
            title = row.title if ours.name == OURS else f"{row.title}, {ours.name}"
            if found is None:
                lines.append(f"| {title} | ≤ {limit.most:.2f} × {limit.of} | not measured | |")
                continue
            middle, low, high = found
            held = "held" if middle <= limit.most else "**not held**"
            lines.append(
                f"| {title} | ≤ {limit.most:.2f} × {limit.of} | {middle:.2f} × ({low:.2f}–{high:.2f}) | {held} |"
            )
    return "\n".join(lines)


def faults(results):
    """Why somebody has no figure."""
    lines = [
        f"* {row.title}, {one.name}: left out: {one.fault}" for row, series in results for one in series if one.fault
    ]
    return "\n".join(lines)
