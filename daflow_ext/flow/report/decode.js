// Undoes encode.py: base64, zlib, zigzag, differences along rows.

async function inflate(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// -> {width, height, stride, unit, x, y}, pixels; NaN where a vector is unknown
async function decodeFlow(code) {
  const bytes = await inflate(code.data);
  const count = code.width * code.height;
  const [x, y] = [0, 1].map((channel) => {
    const values = new Float32Array(count);
    let sum = 0;
    for (let i = 0; i < count; i++) {
      if (i % code.width === 0) sum = 0;
      const place = channel * count + i;
      const zigzag = bytes[place] | (bytes[2 * count + place] << 8);
      sum = ((sum + ((zigzag >>> 1) ^ -(zigzag & 1))) << 16) >> 16;
      values[i] = sum === -32768 ? NaN : sum * code.unit;
    }
    return values;
  });
  return { ...code, data: null, x, y };
}

// -> {width, height, stride, mask, values}, in 0..1
async function decodeMap(code) {
  const bytes = await inflate(code.data);
  const values = new Float32Array(bytes.length);
  let sum = 0;
  for (let i = 0; i < bytes.length; i++) {
    sum = i % code.width === 0 ? bytes[i] : (sum + bytes[i]) & 255;
    values[i] = sum / 255;
  }
  return { ...code, data: null, values };
}

async function decodeStep(step) {
  const all = async (codes, decode) => {
    const found = {};
    for (const [name, code] of Object.entries(codes)) found[name] = await decode(code);
    return found;
  };
  return { ...step, flows: await all(step.flows, decodeFlow), maps: await all(step.maps, decodeMap) };
}

function colorTable(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}
