"""Tasks that one reply answers: polygons, boxes, points, and the IoU of a given mask."""
