"""The flowchart of a ```mermaid block as SVG, for the site: GitHub draws such blocks by a script of its own.

Layered as by Sugiyama et al. (1981): a node stands below all that point at it, a long arrow passes each layer between
at a place that it shares with the others to its aim, and each layer is sorted by the mean position of its neighbours,
so that few arrows cross.
"""

import re
from collections import defaultdict

WIDTH, HEIGHT, GAP, DOWN = 108, 30, 16, 104  # of a box, between boxes, from layer to layer; in pixels
SWEEPS = 24
_EDGE = re.compile(r"^ *(\w+) --> (\w+)$", re.MULTILINE)
_HEAD = (
    '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>'
)


def svg(flowchart: str) -> str:
    """The SVG of lines `a --> b`, which a screen reader reads out; ValueError if the arrows run in a circle."""
    edges = sorted(set(_EDGE.findall(flowchart)))
    layer = _layers(edges)
    chains = [_chain(edge, layer) for edge in edges]
    at = _places(chains, layer)
    width = max(x for x, _ in at.values()) + (WIDTH + GAP) / 2
    height = max(y for _, y in at.values()) + HEIGHT
    drawn = [*(_arrow([at[point] for point in chain]) for chain in chains), *(_box(node, *at[node]) for node in layer)]
    label = "; ".join(f"{a} to {b}" for a, b in edges)
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    return f'<svg role="img" aria-label="Arrows: {label}" {size}>{_HEAD}{"".join(drawn)}</svg>'


def _layers(edges):
    """Node -> its layer: one below the lowest of those that point at it, 0 for those that none points at."""
    above = defaultdict(set)
    for a, b in edges:
        above[b].add(a)
    layer = {}

    def settle(node, path=()):
        if node in path:
            raise ValueError(f"{' --> '.join([node, *reversed(path)])}: the arrows run in a circle")
        if node not in layer:
            layer[node] = max((settle(a, (*path, node)) + 1 for a in sorted(above[node])), default=0)
        return layer[node]

    for node in sorted({node for edge in edges for node in edge}):
        settle(node)
    return layer


def _chain(edge, layer):
    """The points of an arrow: its ends, and a place (aim, layer) in each layer between."""
    a, b = edge
    return [a, *((b, between) for between in range(layer[a] + 1, layer[b])), b]


def _places(chains, layer):
    """Point -> (x, y) of its centre."""
    rows, near = defaultdict(list), defaultdict(set)
    for chain in chains:
        for point in chain:
            row = rows[layer.get(point, point[-1])]
            row += [] if point in row else [point]
        for one, other in zip(chain, chain[1:], strict=False):
            near[one].add(other), near[other].add(one)
    for sweep in range(SWEEPS):
        for number in sorted(rows, reverse=sweep % 2 == 1):
            across = _across(rows)
            rows[number].sort(key=lambda point: sum(across[n] for n in near[point]) / len(near[point]))
    across = _across(rows)
    return {point: (across[point], HEIGHT + DOWN * number) for number, row in rows.items() for point in row}


def _across(rows):
    """Point -> x, each row in the middle; a place that an arrow passes takes the room of a gap."""
    room = {point: (WIDTH if isinstance(point, str) else GAP) + GAP for row in rows.values() for point in row}
    widest = max(sum(room[point] for point in row) for row in rows.values())
    across = {}
    for row in rows.values():
        left = (widest - sum(room[point] for point in row)) / 2
        for point in row:
            across[point] = left + room[point] / 2
            left += room[point]
    return across


def _arrow(points):
    (x, y), *inner, (end, bottom) = points
    points = [(x, y + HEIGHT / 2), *inner, (end, bottom - HEIGHT / 2 - 1)]
    path = f"M{points[0][0]:g} {points[0][1]:g}"
    for (x, y), (to, down) in zip(points, points[1:], strict=False):
        path += f"C{x:g} {(y + down) / 2:g} {to:g} {(y + down) / 2:g} {to:g} {down:g}"
    return f'<path d="{path}" fill="none" stroke="currentColor" marker-end="url(#arrow)"/>'


def _box(name, x, y):
    left, top = x - WIDTH / 2, y - HEIGHT / 2
    return (
        f'<rect x="{left:g}" y="{top:g}" width="{WIDTH}" height="{HEIGHT}" rx="5"/>'
        f'<text x="{x:g}" y="{y + 5:g}" text-anchor="middle">{name}</text>'
    )
