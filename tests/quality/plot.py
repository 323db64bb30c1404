"""Curves of quality against bytes as SVG, without a plotting library."""
import html
import math

COLOURS = ["#c0392b", "#2a6fb0", "#2e8b57", "#b9770e", "#6c3483", "#117a65", "#7f8c8d", "#34495e", "#d35400", "#1f618d"]
LEFT, RIGHT, TOP, BOTTOM = 70, 640, 40, 470


def log_axis(low, high, start, end):
    return lambda v: start + (end - start) * math.log(min(max(v, low), high) / low) / math.log(high / low)


def curves(title, series, y_label, least=1e-5):
    """series: {name: [(ratio, kl, label)]}. Points below `least` stand on the lower edge."""
    points = [p for ps in series.values() for p in ps]
    most_x = 2 ** math.ceil(math.log2(max(2, *(p[0] for p in points))))
    most_y = 10 ** math.ceil(math.log10(max(p[1] for p in points)))
    low_y = max(least, 10 ** math.floor(math.log10(min(max(p[1], least) for p in points))))
    x, y = log_axis(1, most_x, LEFT, RIGHT), log_axis(low_y, most_y, BOTTOM, TOP)
    out = [f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 880 520' font-family='sans-serif' font-size='12'>",
           "<rect width='880' height='520' fill='white'/>",
           f"<text x='{LEFT}' y='22' font-size='15'>{html.escape(title)}</text>"]
    tick = 1
    while tick <= most_x:
        out.append(f"<line x1='{x(tick):.1f}' x2='{x(tick):.1f}' y1='{TOP}' y2='{BOTTOM}' stroke='#ddd'/>"
                   f"<text x='{x(tick):.1f}' y='{BOTTOM + 18}' text-anchor='middle'>{tick}x</text>")
        tick *= 2
    exponent = round(math.log10(low_y))
    while 10 ** exponent <= most_y * 1.001:
        at = y(10 ** exponent)
        out.append(f"<line x1='{LEFT}' x2='{RIGHT}' y1='{at:.1f}' y2='{at:.1f}' stroke='#ddd'/>"
                   f"<text x='{LEFT - 6}' y='{at + 4:.1f}' text-anchor='end'>{10 ** exponent:g}</text>")
        exponent += 1
    out.append(f"<text x='{(LEFT + RIGHT) / 2}' y='{BOTTOM + 38}' text-anchor='middle'>bf16 bytes / all bytes</text>"
               f"<text x='16' y='{(TOP + BOTTOM) / 2}' text-anchor='middle' transform='rotate(-90 16 {(TOP + BOTTOM) / 2})'>"
               f"{html.escape(y_label)}</text>")
    for i, (name, ps) in enumerate(series.items()):
        colour, ps = COLOURS[i % len(COLOURS)], sorted(ps)
        best, least_kl = [], math.inf  # the family's own frontier is joined by a line
        for p in reversed(ps):
            if p[1] < least_kl:
                best, least_kl = [p] + best, p[1]
        out.append(f"<polyline fill='none' stroke='{colour}' stroke-width='1.5' points='"
                   + " ".join(f"{x(p[0]):.1f},{y(p[1]):.1f}" for p in best) + "'/>")
        out += [f"<circle cx='{x(p[0]):.1f}' cy='{y(p[1]):.1f}' r='3.5' fill='{colour}'><title>{html.escape(p[2])}: "
                f"{p[0]:.2f}x, KL {p[1]:.2g}</title></circle>" for p in ps]
        out.append(f"<circle cx='{RIGHT + 20}' cy='{TOP + 8 + 20 * i}' r='5' fill='{colour}'/>"
                   f"<text x='{RIGHT + 32}' y='{TOP + 12 + 20 * i}'>{html.escape(name)}</text>")
    return "\n".join(out + ["</svg>\n"])
