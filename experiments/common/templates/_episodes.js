"use strict";
(() => {
  const view = JSON.parse(document.getElementById("episodes").textContent), rows = view.rows;
  const root = document.getElementById("browser"), list = root.querySelector(".episodes");
  const at = name => root.querySelector(`[data-at="${name}"]`);
  const layer = name => root.querySelector(`[data-layer="${name}"]`).checked;
  const ROW = 42, LONGEST = 640;
  let found = [], current = -1, episode = null, step = 0, image = null, wanted = 0;

  // Episodes: from the page, or from a script beside it that calls segenvEpisodes.
  const files = new Map(), waiting = new Map();
  window.segenvEpisodes = (number, episodes) => waiting.get(number)?.(episodes);
  function fetchFile(number) {
    if (files.has(number)) return files.get(number);
    const promise = new Promise((resolve, reject) => {
      waiting.set(number, resolve);
      const script = document.createElement("script");
      script.src = `${view.folder}/${number}.js`;
      script.onload = () => { script.remove(); reject(new Error(`${script.src} holds no episodes`)); }; // too late, where it does
      script.onerror = () => { files.delete(number); reject(new Error(`${view.folder}/${number}.js is missing; it belongs beside this page`)); };
      document.head.append(script);
    });
    files.set(number, promise);
    if (files.size > 24) files.delete(files.keys().next().value);
    return promise;
  }
  const fetchEpisode = async row => view.episodes ? view.episodes[row.at] : (await fetchFile(Math.floor(row.at / view.in_file)))[row.at % view.in_file];
  const imageOf = name => view.images[name] || `${view.folder}/images/${name}.jpg`;
  const loadImage = source => new Promise((resolve, reject) => {
    const picture = new Image();
    picture.onload = () => resolve(picture);
    picture.onerror = () => reject(new Error(`${source.slice(0, 80)} is missing; it belongs beside this page`));
    picture.src = source;
  });

  // COCO's compressed run lengths (column-major) as a row-major array of 0 and 1.
  function decode(text, width, height) {
    const counts = [], out = new Uint8Array(width * height);
    for (let p = 0; p < text.length;) {
      let value = 0, shift = 0, more = true;
      while (more) {
        const c = text.charCodeAt(p++) - 48;
        value |= (c & 31) << shift;
        shift += 5;
        more = (c & 32) !== 0;
        if (!more && (c & 16)) value |= -1 << shift;
      }
      if (counts.length > 2) value += counts[counts.length - 2];
      counts.push(value);
    }
    let i = 0;
    counts.forEach((count, k) => {
      for (const end = i + count; i < end; i++) if (k % 2) out[(i % height) * width + Math.floor(i / height)] = 1;
    });
    return out;
  }

  // Draw the image on a canvas of a size, and [r, g, b, alpha] of `colour(i)` for each pixel i of the episode's over it.
  function paint(name, width, height, colour, place) {
    const canvas = root.querySelector(`[data-view="${name}"]`), g = canvas.getContext("2d"), [w, h] = episode.shown;
    [canvas.width, canvas.height] = [width, height];
    const [x, y, shownWidth, shownHeight] = place || [0, 0, width, height];
    g.fillStyle = "#7f7f7f";
    g.fillRect(0, 0, width, height);
    g.drawImage(image, x, y, shownWidth, shownHeight);
    const over = new OffscreenCanvas(w, h), picture = new ImageData(w, h), d = picture.data;
    for (let i = 0; i < w * h; i++) {
      const c = colour(i);
      if (c) { d[4 * i] = c[0]; d[4 * i + 1] = c[1]; d[4 * i + 2] = c[2]; d[4 * i + 3] = 255 * c[3]; }
    }
    over.getContext("2d").putImageData(picture, 0, 0);
    g.imageSmoothingEnabled = false;
    g.drawImage(over, x, y, shownWidth, shownHeight);
    return g;
  }

  function drawClicks(g, clicks, scale) {
    clicks.forEach(([x, y, positive], i) => {
      const px = (x + 0.5) * scale[0], py = (y + 0.5) * scale[1], newest = i === clicks.length - 1;
      const r = Math.max(g.canvas.width, g.canvas.height) / (newest ? 58 : 78);
      g.beginPath();
      g.arc(px, py, r, 0, 7);
      g.fillStyle = positive ? "#12b886" : "#e03131";
      g.fill();
      g.lineWidth = newest ? 2.5 : 1.2;
      g.strokeStyle = "#fff";
      g.stroke();
      g.beginPath();
      g.lineWidth = 1.6;
      g.moveTo(px - r / 2, py); g.lineTo(px + r / 2, py);
      if (positive) { g.moveTo(px, py - r / 2); g.lineTo(px, py + r / 2); }
      g.stroke();
    });
  }

  function drawShape(g, s, scale) {
    const b = s.box, rings = b ? [[[b[0], b[1]], [b[2], b[1]], [b[2], b[3]], [b[0], b[3]]]] : s.rings || [];
    g.strokeStyle = "#fff";
    g.fillStyle = "#12b886";
    g.lineWidth = 1.5;
    for (const ring of rings) {
      g.beginPath();
      ring.forEach(([x, y]) => g.lineTo(x * scale[0], y * scale[1]));
      g.closePath();
      g.stroke();
      for (const [x, y] of ring) g.fillRect(x * scale[0] - 2, y * scale[1] - 2, 4, 4);
    }
  }

  function svg(name, attributes, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function drawCurve(e) {
    const box = at("curve"), n = Math.max(e.steps.length, 1), ious = [e.start.iou, ...e.steps.map(s => s.iou)];
    const X = k => 34 + k / n * 376, Y = v => 184 - v * 172;
    box.replaceChildren();
    for (const v of [0, 0.25, 0.5, 0.75, 1]) {
      box.append(svg("line", { x1: 34, x2: 410, y1: Y(v), y2: Y(v), stroke: "var(--line)" }));
      box.append(svg("text", { x: 28, y: Y(v) + 4, "text-anchor": "end" }, v.toFixed(2)));
    }
    for (let k = 0; k <= n; k += Math.ceil(n / 10)) box.append(svg("text", { x: X(k), y: 202, "text-anchor": "middle" }, k));
    box.append(svg("line", { x1: X(step), x2: X(step), y1: Y(0), y2: Y(1), stroke: "var(--accent)", "stroke-opacity": 0.5 }));
    box.append(svg("polyline", { points: ious.map((v, k) => `${X(k)},${Y(v)}`).join(" "), fill: "none", stroke: "var(--accent)", "stroke-width": 2 }));
    e.steps.forEach((s, k) => {
      if (s.stated !== null) box.append(svg("rect", { x: X(k) - 3, y: Y(s.stated) - 3, width: 6, height: 6, fill: "none", stroke: "var(--worst)", "stroke-width": 1.5 }));
    });
    ious.forEach((v, k) => {
      const dot = svg("circle", { cx: X(k), cy: Y(v), r: k === step ? 5.5 : 3.2, fill: "var(--accent)" });
      dot.append(svg("title", {}, `after action ${k}: ${v.toFixed(4)}`));
      dot.addEventListener("click", () => move(k));
      box.append(dot);
    });
  }

  function fact(name, value, bad) {
    if (value === null || value === undefined || value === false) return;
    const key = document.createElement("dt"), item = document.createElement("dd");
    key.textContent = name;
    item.textContent = value;
    if (bad) item.className = "bad";
    at("facts").append(key, item);
  }

  function drawFacts(e) {
    const s = step ? e.steps[step - 1] : null, before = step > 1 ? e.steps[step - 2].iou : e.start.iou;
    at("reply").textContent = s ? s.text || "(an empty reply)" : "(start: no reply yet)";
    at("facts").replaceChildren();
    at("asked").hidden = !s;
    if (!s) return fact("IoU at the start", e.start.iou.toFixed(4));
    const gain = s.iou - before;
    fact("action", s.action, s.kind === "invalid");
    fact("error", s.error, true);
    fact("written", s.exact ? "exactly as asked" : null);
    fact("further actions", s.extra ? `${s.extra}, not carried out` : null);
    fact("sign", s.unsigned ? "none: read as positive" : null);
    fact("ended by", s.ended);
    fact("tokens", s.tokens);
    fact("IoU", `${s.iou.toFixed(4)}  (${gain < 0 ? "−" : "+"}${Math.abs(gain).toFixed(4)})`);
    fact("reward", s.reward === null ? null : s.reward.toFixed(4));
    fact("tool's estimate", s.score === null ? null : s.score.toFixed(4));
    fact("stated IoU before", s.stated === null ? null : `${s.stated.toFixed(2)}  (was ${before.toFixed(4)}; squares in the curve)`);
  }

  const maskAfter = k => decode(k ? episode.steps[k - 1].mask : episode.start.mask, ...episode.shown);

  // The picture as a model gets it before the action: the mask in green over the image, at the size that is sent.
  function drawSent(e) {
    if (!step || !at("asked").open) return;
    const s = e.steps[step - 1], [width, height] = e.sent || e.size, mask = maskAfter(step - 1);
    const fit = Math.min(width / e.size[0], height / e.size[1]), squared = e.sent && width === height && e.size[0] !== e.size[1] && e.sent[2];
    const place = squared ? [(width - fit * e.size[0]) / 2, (height - fit * e.size[1]) / 2, fit * e.size[0], fit * e.size[1]] : null;
    paint("sent", width, height, i => mask[i] && [0, 255, 0, 0.5], place);
    at("sent").textContent = e.sent ? `Sent at ${width} × ${height} pixels` : "No picture was sent; this is the image and the mask before the action";
    at("prompt").textContent = s.prompt === undefined ? "(this agent is not prompted)" : e.prompts[s.prompt] || "(an empty prompt)";
  }

  function draw() {
    const e = episode, [w, h] = e.shown, big = Math.max(1, Math.ceil(LONGEST / Math.max(w, h)));
    const mask = maskAfter(at("before").checked ? Math.max(step - 1, 0) : step);
    const target = decode(e.target, w, h), ignored = e.ignored ? decode(e.ignored, w, h) : null;
    const [masks, targets, errors, clicks] = ["mask", "target", "errors", "clicks"].map(layer);
    const edge = i => target[i] && (i % w === 0 || i % w === w - 1 || i < w || i >= w * (h - 1) || !target[i - 1] || !target[i + 1] || !target[i - w] || !target[i + w]);
    at("ignored").hidden = !ignored;
    const g = paint("scene", w * big, h * big, i => {
      if (targets && edge(i)) return [255, 220, 0, 1];
      if (ignored && ignored[i]) return targets ? [154, 163, 171, 0.7] : masks && mask[i] ? [30, 200, 255, 0.45] : null;
      if (errors && target[i] !== mask[i]) return mask[i] ? [255, 90, 26, 0.6] : [47, 107, 255, 0.6];
      return masks && mask[i] ? [30, 200, 255, 0.45] : null;
    });
    const scale = [g.canvas.width / e.size[0], g.canvas.height / e.size[1]], s = step ? e.steps[step - 1] : null;
    if (clicks && s) {
      drawShape(g, s, scale);
      drawClicks(g, s.clicks, scale);
    }
    drawSent(e);
    drawFacts(e);
    drawCurve(e);
    at("slider").value = step;
    at("count").textContent = `${step} / ${e.steps.length}`;
    for (const [name, off] of [["first", !step], ["back", !step], ["on", step === e.steps.length], ["last", step === e.steps.length]])
      root.querySelector(`[data-do="${name}"]`).disabled = off;
  }

  const address = (row, k) => `#${new URLSearchParams({ task: row.id, ...(row.sample && { sample: row.sample }), ...(row.group && { group: row.group }), ...(k !== undefined && { step: k }) })}`;

  function move(k, quiet) {
    if (!episode) return;
    step = Math.min(Math.max(k, 0), episode.steps.length);
    draw();
    at("link").href = address(rows[current], step);
    if (!quiet) try { history.replaceState(null, "", at("link").href); } catch { /* within another page */ }
    root.dataset.shown = `${current} ${step}`;
  }

  async function show(which, k, quiet) {
    if (which === current && episode) return move(k, quiet);
    const row = rows[which], mine = ++wanted;
    current = which;
    mark();
    try {
      const e = await fetchEpisode(row), picture = await loadImage(imageOf(e.image));
      if (mine !== wanted) return; // another one was asked for meanwhile
      [episode, image] = [e, picture];
    } catch (error) {
      if (mine === wanted) { episode = null; at("title").textContent = row.instruction || row.id; at("subtitle").textContent = error.message; }
      return;
    }
    const e = episode;
    at("title").textContent = e.instruction || e.id;
    at("subtitle").textContent = [e.instruction && e.id, row.group, e.sample && `sample ${e.sample}`, `${e.size[0]} × ${e.size[1]} px`, e.object && e.present && `${e.object} object`, `final IoU ${row.iou.toFixed(4)}`, ...row.flags].filter(Boolean).join(" · ");
    at("slider").max = e.steps.length;
    move(k, quiet);
  }

  // The list: only the rows in sight are in the page.
  function drawList() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4), last = Math.min(found.length, first + Math.ceil(list.clientHeight / ROW) + 8);
    list.firstElementChild.style.height = `${found.length * ROW}px`;
    list.firstElementChild.replaceChildren(...found.slice(first, last).map((which, k) => {
      const row = rows[which], link = document.createElement("a"), thumb = document.createElement("img"), name = document.createElement("span"), value = document.createElement("span");
      link.href = address(row);
      link.style.top = `${(first + k) * ROW}px`;
      link.title = [row.instruction, row.id, ...row.flags].filter(Boolean).join("\n");
      link.setAttribute("aria-current", which === current);
      thumb.src = imageOf(row.image);
      thumb.alt = "";
      name.className = "name";
      name.textContent = row.instruction || row.id;
      const below = [row.group, row.sample && `sample ${row.sample}`, row.instruction && row.id].filter(Boolean).join(" · ");
      if (below) {
        const line = document.createElement("div");
        line.className = "soft";
        line.textContent = below;
        name.append(line);
      }
      value.textContent = row.iou.toFixed(3);
      link.append(thumb, name, value);
      link.addEventListener("click", event => { if (event.ctrlKey || event.metaKey || event.shiftKey) return; event.preventDefault(); show(which, Infinity); });
      return link;
    }));
  }

  function mark() {
    const place = found.indexOf(current);
    if (place >= 0) list.scrollTop = Math.min(Math.max(list.scrollTop, (place + 1) * ROW - list.clientHeight), place * ROW);
    drawList();
  }

  const ORDERS = {
    "in the order of the data": null, "worst first": (a, b) => a.iou - b.iou, "best first": (a, b) => b.iou - a.iou,
    "largest loss after the best mask": (a, b) => b.best - b.iou - (a.best - a.iou), "most actions": (a, b) => b.steps - a.steps, "by name": (a, b) => (a.id < b.id ? -1 : 1),
  };
  const ranked = rows.map(row => row.iou).sort((a, b) => a - b), tenth = Math.max(1, Math.ceil(rows.length / 10));
  const SHOWN = { "worst tenth": row => row.iou <= ranked[tenth - 1], "best tenth": row => row.iou >= ranked[ranked.length - tenth] };
  for (const name of new Set(rows.map(row => row.group).filter(Boolean))) SHOWN[name] = row => row.group === name;
  for (const name of new Set(rows.flatMap(row => row.flags))) SHOWN[name] = row => row.flags.includes(name);
  const option = (select, value, text) => { const one = document.createElement("option"); one.value = value; one.textContent = text; select.append(one); };
  const counted = name => `${name} (${rows.filter(SHOWN[name]).length})`;
  Object.keys(SHOWN).forEach(name => option(at("show"), name, counted(name)));
  Object.keys(ORDERS).forEach(name => option(at("order"), name, name));
  for (const name of ["small", "medium", "large", ...new Set(rows.map(row => row.object))]) {
    const some = rows.filter(row => row.object === name).length;
    if (name && some && ![...at("object").options].some(one => one.value === name)) option(at("object"), name, `${name} (${some})`);
  }
  at("object").hidden = at("object").options.length < 2;

  function find() {
    const words = at("search").value.toLowerCase().split(/\s+/).filter(Boolean), shown = SHOWN[at("show").value], size = at("object").value;
    found = [...rows.keys()].filter(k => {
      const row = rows[k], text = `${row.id} ${row.instruction}`.toLowerCase();
      return words.every(word => text.includes(word)) && (!shown || shown(row)) && (!size || row.object === size);
    });
    const order = ORDERS[at("order").value];
    if (order) found.sort((a, b) => order(rows[a], rows[b]) || a - b);
    at("found").textContent = found.length === rows.length ? `${rows.length} episodes` : `${found.length} of ${rows.length} episodes`;
    list.scrollTop = 0;
    drawList();
  }

  const beside = by => { const place = found.indexOf(current), next = found[place + by]; if (place < 0 ? found.length : next !== undefined) show(place < 0 ? found[0] : next, Infinity); };
  const toggle = name => () => root.querySelector(`[data-layer="${name}"]`).click();
  const moves = { first: () => move(0), back: () => move(step - 1), on: () => move(step + 1), last: () => move(Infinity) };
  for (const [name, action] of Object.entries(moves)) root.querySelector(`[data-do="${name}"]`).addEventListener("click", action);
  const KEYS = {
    ArrowLeft: moves.back, ArrowRight: moves.on, Home: moves.first, End: moves.last, b: () => at("before").click(), "/": () => at("search").focus(),
    m: toggle("mask"), t: toggle("target"), e: toggle("errors"), c: toggle("clicks"), ArrowUp: () => beside(-1), ArrowDown: () => beside(1),
  };
  at("slider").addEventListener("input", event => move(Number(event.target.value)));
  at("before").addEventListener("change", () => episode && draw());
  at("asked").addEventListener("toggle", () => episode && draw());
  root.querySelectorAll("[data-layer]").forEach(box => box.addEventListener("change", () => episode && draw()));
  list.addEventListener("scroll", drawList, { passive: true });
  at("search").addEventListener("input", find);
  for (const name of ["show", "object", "order"]) at(name).addEventListener("change", find);
  document.addEventListener("keydown", event => {
    const typing = event.target instanceof HTMLSelectElement || (event.target instanceof HTMLInputElement && event.target.type === "search");
    if (typing && event.key === "Escape") event.target.blur();
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
    const { top, bottom } = root.getBoundingClientRect();
    if (bottom < 0 || top > window.innerHeight) return; // the browser is out of sight: the keys scroll the page
    event.preventDefault();
    KEYS[event.key]();
  });

  function followAddress() {
    const wish = new URLSearchParams(location.hash.slice(1)), task = wish.get("task");
    const which = task === null ? -1 : rows.findIndex(row => row.id === task && String(row.sample || 0) === (wish.get("sample") || "0") && (!wish.get("group") || row.group === wish.get("group")));
    if (which < 0) return false;
    show(which, wish.get("step") === null ? Infinity : Number(wish.get("step")), true);
    return true;
  }
  window.addEventListener("hashchange", followAddress);
  root.show = show; // for links elsewhere in the page: root.show(index of the row, step)
  find();
  if (followAddress()) root.scrollIntoView();
  else if (found.length) show(found[0], Infinity, true);
})();
