"""The page that `benches/run` writes: one file that needs no other, with its plots as SVG in it.

What a benchmark measured besides its rows comes in its JSON: `tables` of `{"title", "columns", "lines"}`, and `plots` of
`{"title", "unit", "bars": [[label, value], …]}` or `{"title", "unit", "x", "series": {name: [[x, y], …]}}`.
"""
import html, math, re

COLORS = ["#2b6cb0", "#b4462f", "#2b7a4b", "#8a5cc2", "#b7791f", "#4a5568"]
STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:62rem;padding:0 1rem;color:#1c2530}
table{border-collapse:collapse;margin:.6rem 0 1.4rem;display:block;overflow-x:auto}td,th{padding:.25rem .8rem;border-bottom:1px solid #d8dee5;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}h2{margin-top:2.2rem;border-top:2px solid #d8dee5;padding-top:1rem}
figure{margin:1rem 0}figcaption{font-weight:600}svg{max-width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:#1c2530}
.yes{color:#2b7a4b}.no{color:#b4462f}"""


def reached(row):
    sign, number = re.match(r"\s*(<=|>=)\s*([\d.]+)", row["target"]).groups()
    return row["ratio"] <= float(number) if sign == "<=" else row["ratio"] >= float(number)


def number(value):
    """Four digits are enough to look at."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return str(value)
    if value != value:
        return "–"
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def table(columns, lines):
    cell = lambda c: f'<td class="n">{number(c)}</td>' if isinstance(c, (int, float)) else f"<td>{html.escape(str(c))}</td>"
    head = "".join(f"<th>{html.escape(c)}" for c in columns)
    return f"<table><tr>{head}</tr>" + "".join("<tr>" + "".join(cell(c) for c in line) + "</tr>" for line in lines) + "</table>"


def ticks(most, count=5):
    """Round values from 0 to `most` and a little over."""
    if not most > 0:
        return [0, 1]
    step = 10 ** math.floor(math.log10(most / count))
    step = next(step * m for m in (1, 2, 5, 10) if step * m * count >= most)
    return [step * n for n in range(math.ceil(most / step - 1e-9) + 1)]


def figure(title, unit, width, height, drawn):
    caption = html.escape(title) + (f" ({html.escape(unit)})" if unit else "")
    return (f'<figure><figcaption>{caption}</figcaption><svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
            f'aria-label="{caption}">{"".join(drawn)}</svg></figure>')


def bars(plot):
    width, left, line = 820, 240, 24
    scale = ticks(max([v for _, v in plot["bars"] if v == v] + [0]))
    drawn = []
    for n, (label, value) in enumerate(plot["bars"]):
        y, length = n * line, (width - left - 90) * (value if value == value else 0) / scale[-1]
        drawn.append(f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{html.escape(str(label))}</text>'
                     f'<rect x="{left}" y="{y + 4}" width="{length:.1f}" height="16" fill="{COLORS[0]}"/>'
                     f'<text x="{left + length + 6:.1f}" y="{y + 16}">{number(value)}</text>')
    return figure(plot["title"], plot.get("unit"), width, line * len(plot["bars"]) + 6, drawn)


def lines(plot):
    width, height, left, bottom = 820, 280, 64, 44
    points = [p for series in plot["series"].values() for p in series]
    if not points:
        return figure(plot["title"], plot.get("unit"), width, 30, ['<text x="8" y="20">nothing was measured</text>'])
    across, up = ticks(max(p[0] for p in points), 8), ticks(max(p[1] for p in points))
    x = lambda v: left + (width - left - 12) * v / across[-1]
    y = lambda v: 10 + (height - bottom - 10) * (1 - v / up[-1])
    drawn = [f'<line x1="{left}" x2="{width - 12}" y1="{y(t):.1f}" y2="{y(t):.1f}" stroke="#d8dee5"/>'
             f'<text x="{left - 6}" y="{y(t) + 4:.1f}" text-anchor="end">{number(t)}</text>' for t in up]
    drawn += [f'<text x="{x(t):.1f}" y="{height - bottom + 16}" text-anchor="middle">{number(t)}</text>' for t in across]
    at = left
    for n, (name, series) in enumerate(plot["series"].items()):
        color = COLORS[n % len(COLORS)]
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in series)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6"/>'
                     f'<rect x="{at}" y="{height - 14}" width="12" height="4" fill="{color}"/><text x="{at + 17}" y="{height - 8}">{html.escape(name)}</text>')
        at += 30 + 7 * len(name)
    drawn.append(f'<text x="{width - 12}" y="{height - 8}" text-anchor="end">{html.escape(plot.get("x", ""))}</text>')
    return figure(plot["title"], plot.get("unit"), width, height, drawn)


def against_target(row):
    """A bar for the ratio and a line for where it should end."""
    sign, target = re.match(r"\s*(<=|>=)\s*([\d.]+)", row["target"]).groups()
    most = max(row["ratio"], float(target)) * 1.15 or 1
    x, t, color = 260 * row["ratio"] / most, 260 * float(target) / most, COLORS[2] if reached(row) else COLORS[1]
    return (f'<svg width="270" height="22" viewBox="0 0 270 22" role="img" aria-label="ratio {row["ratio"]}, target {html.escape(row["target"])}">'
            f'<rect x="0" y="5" width="{x:.1f}" height="12" fill="{color}"/>'
            f'<line x1="{t:.1f}" y1="1" x2="{t:.1f}" y2="21" stroke="#111" stroke-width="2"/></svg>')


def section(bench):
    parts = [f'<h2 id="{bench["name"]}">{html.escape(bench["name"])}</h2><p>{html.escape(bench["about"])}</p>']
    if bench["rows"]:
        rows = [[r["name"], r["ours"], r["peer"], r["ratio"], r["target"], r["unit"]] for r in bench["rows"]]
        parts.append(table(["row", "ours", "peer", "ratio", "to reach", "unit"], rows))
    for t in bench["tables"]:
        parts.append(f"<p><b>{html.escape(t['title'])}</b></p>" + table(t["columns"], t["lines"]))
    parts += [bars(p) if "bars" in p else lines(p) for p in bench["plots"]]
    return "".join(parts)


def render(result):
    """`result` is what `benches/run` writes as JSON."""
    cell = lambda c, n=False: f'<td class="n">{number(c)}</td>' if n else f"<td>{html.escape(str(c))}</td>"
    rows = "".join(
        "<tr>" + cell(r["name"]) + cell(r["ours"], True) + cell(r["peer"], True) + cell(r["ratio"], True) + cell(r["target"])
        + f'<td class="{"yes" if reached(r) else "no"}">{"reached" if reached(r) else "not reached"}</td>' + cell(r["unit"])
        + f"<td>{against_target(r)}</td></tr>" for r in result["rows"])
    missing = "".join(f"<li>{html.escape(name)}</li>" for name in result["missing"])
    contents = " · ".join(f'<a href="#{b["name"]}">{html.escape(b["name"])}</a>' for b in result["benches"])
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>gmah: benchmarks</title><style>{STYLE}</style>
<h1>gmah: benchmarks</h1><p>{html.escape(result["date"])}, commit {html.escape(result["commit"])}, {html.escape(result["machine"])}, build: {html.escape(result["build"])}{
"; a quick look, not a measurement" if result["quick"] else ""}. A ratio is ours over the peer's, the black line is what it is to reach.</p>
<p>{contents}</p><table><tr><th>row<th>ours<th>peer<th>ratio<th>to reach<th><th>unit<th></tr>{rows}</table>
{f"<p>Missing:</p><ul>{missing}</ul>" if missing else ""}{"".join(section(b) for b in result["benches"])}</html>
"""
