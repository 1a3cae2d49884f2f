// Colours: of flow the same as flow_to_image, of errors the same as error_to_image.

// Writes the colour of a vector, in units of full colour, to pixels[place..].
function colorVector(wheel, x, y, pixels, place) {
  pixels[place + 3] = 255;
  if (!(Math.abs(x) + Math.abs(y) < Infinity)) return; // unknown: black
  const length = Math.hypot(x, y);
  const last = wheel.length / 3 - 1;
  const position = ((Math.atan2(-y, -x) / Math.PI + 1) / 2) * last;
  const lower = Math.min(Math.floor(position), last);
  const upper = (lower + 1) % (last + 1);
  const part = position - lower;
  for (let c = 0; c < 3; c++) {
    const hue = (wheel[3 * lower + c] * (1 - part) + wheel[3 * upper + c] * part) / 255;
    pixels[place + c] = Math.floor(255 * (length <= 1 ? 1 - length * (1 - hue) : 0.75 * hue) + 1e-4);
  }
}

function paint(canvas, width, height, fill) {
  canvas.width = width;
  canvas.height = height;
  const picture = new ImageData(width, height);
  fill(picture.data);
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

function paintFlow(canvas, wheel, flow, full) {
  paint(canvas, flow.width, flow.height, (pixels) => {
    for (let i = 0; i < flow.x.length; i++) colorVector(wheel, flow.x[i] / full, flow.y[i] / full, pixels, 4 * i);
  });
}

function paintError(canvas, ramp, one, other, brightest) {
  paint(canvas, one.width, one.height, (pixels) => {
    for (let i = 0; i < one.x.length; i++) {
      const error = Math.hypot(one.x[i] - other.x[i], one.y[i] - other.y[i]);
      const level = 3 * Math.min(255, Math.floor((error / brightest) * 255));
      const color = Number.isNaN(error) ? [128, 128, 128] : ramp.subarray(level, level + 3);
      pixels.set(color, 4 * i);
      pixels[4 * i + 3] = 255;
    }
  });
}

// A transparent colour, to lie over a picture: strong where a mask is set or a confidence is low.
function paintOverlay(canvas, map, { color, alpha }) {
  paint(canvas, map.width, map.height, (pixels) => {
    for (let i = 0; i < map.values.length; i++) {
      pixels.set(color, 4 * i);
      pixels[4 * i + 3] = Math.round(255 * alpha * (map.mask ? map.values[i] : 1 - map.values[i]));
    }
  });
}

// The wheel, and a dot at one vector given in units of full colour.
function paintWheel(canvas, wheel, vector) {
  const side = canvas.width;
  const middle = (side - 1) / 2;
  paint(canvas, side, side, (pixels) => {
    for (let row = 0; row < side; row++) {
      for (let column = 0; column < side; column++) {
        const [x, y] = [(column - middle) / (side / 2), (row - middle) / (side / 2)];
        if (x * x + y * y <= 1) colorVector(wheel, x, y, pixels, 4 * (row * side + column));
      }
    }
  });
  if (!vector || !Number.isFinite(vector[0] + vector[1])) return;
  const shrink = Math.min(1, 0.97 / Math.hypot(...vector));
  const draw = canvas.getContext("2d");
  draw.beginPath();
  draw.arc(middle + (vector[0] * shrink * side) / 2, middle + (vector[1] * shrink * side) / 2, 4, 0, 2 * Math.PI);
  draw.lineWidth = 2;
  draw.strokeStyle = "#000";
  draw.stroke();
  draw.fillStyle = "#fff";
  draw.fill();
}
