// Places labels beside their points: no label covers another, a point or a line, and none leaves the plot. A label that
// fits nowhere is left out; the point keeps its hover text.
"use strict";
const MARK = 6; // half the width of a point's mark, in pixels, with some air
const FAR = 12; // a label farther away than this gets a line to its point
const DISTANCES = [2, 8, 16, 26, 40];
const SIDES = [[1, 0], [-1, 0], [0, -1], [0, 1], [1, -1], [1, 1], [-1, -1], [-1, 1]];

function overlaps(one, other) {
  return one[0] < other[2] && other[0] < one[2] && one[1] < other[3] && other[1] < one[3];
}

function isInside(box, [width, height]) {
  return box[0] >= 0 && box[1] >= 0 && box[2] <= width && box[3] <= height;
}

function distance([left, top, right, bottom], { x, y }) {
  return Math.hypot(Math.max(left - x, x - right, 0), Math.max(top - y, y - bottom, 0));
}

// A label without a line must be nearest to its own point, or it would be read as another's.
function isClear(place, label, labels) {
  return place.far || labels.every((other) => distance(place.box, label) <= distance(place.box, other));
}

function candidatesOf(label) {
  return DISTANCES.flatMap((gap) =>
    SIDES.map(([right, down]) => {
      const x = label.x + right * (MARK + gap + label.width / 2);
      const y = label.y + down * (MARK + gap + label.height / 2);
      const box = [x - label.width / 2, y - label.height / 2, x + label.width / 2, y + label.height / 2];
      return { x, y, box, far: gap > FAR };
    })
  );
}

// labels: [{x, y, text, width, height}] in pixels, the important ones first; size: [width, height] of the plot;
// taken: boxes that must stay free. Returns a place {x, y, box, far} or null for each label, x and y its centre.
function placeLabels(labels, size, taken = []) {
  const used = [...taken, ...labels.map(({ x, y }) => [x - MARK, y - MARK, x + MARK, y + MARK])];
  return labels.map((label) => {
    if (label.text === "") return null;
    const free = (place) =>
      isInside(place.box, size) && !used.some((box) => overlaps(place.box, box)) && isClear(place, label, labels);
    const place = candidatesOf(label).find(free) ?? null;
    if (place !== null) used.push(place.box);
    return place;
  });
}
