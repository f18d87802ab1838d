(() => {
  "use strict";
  const SPACE = "http://www.w3.org/2000/svg";
  const MOST_DRAWN = 1500;
  const CHOSEN = "#eba11d";
  const LEFT = 92, TOP = 20, RIGHT = 26, ROOM = 880;

  function decode(packed) {
    const bytes = Uint8Array.from(atob(packed.bdata), (letter) => letter.charCodeAt(0));
    return new Float32Array(bytes.buffer);
  }
  const numeral = (value) => (value !== 0 && value < 0.0005 ? value.toExponential(1).replace("-", "\u2212") : value.toFixed(3));

  function make(name, attributes, parent, text) {
    const element = document.createElementNS(SPACE, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    if (parent) parent.append(element);
    return element;
  }

  function diagram(root) {
    const data = JSON.parse(document.getElementById(root.id + "-data").textContent);
    const size = data.tokens.length, top = data.layers;
    const transitions = data.transitions && decode(data.transitions);
    const given = Object.fromEntries(Object.entries(data.edges).map(([target, packed]) => [target, decode(packed)]));
    const fixed = Object.keys(given).length > 0;
    const form = root.querySelector("form"), svg = root.querySelector("svg");
    const tip = root.querySelector(".flow-tip"), said = root.querySelector(".flow-said"), frame = root.querySelector(".flow-frame");
    const step = Math.max(17, Math.min(84, (ROOM - LEFT - RIGHT) / Math.max(size - 1, 1)));
    const rise = top > 12 ? 32 : top > 6 ? 46 : 60;
    const longest = Math.max(...data.tokens.map((token) => Math.min(token.length, 16)));
    const upright = size > 10 || longest * 7.4 > step - 4;
    const foot = upright ? 24 + longest * 6.7 : 34;
    const width = LEFT + RIGHT + step * Math.max(size - 1, 1), height = TOP + rise * top + foot;
    const x = (place) => LEFT + step * place;
    const y = (layer) => TOP + rise * (top - layer);
    const level = (layer) => (layer ? data.layerNames[layer - 1] : "input");
    const short = (token) => (token.length > 16 ? token.slice(0, 15) + "\u2026" : token);
    const named = (place) => `${data.tokens[place]} (${data.places[place]})`;
    let chosen = { layer: top, place: data.places.indexOf(data.target) };
    let nodes = [], reach = [], edges = [];

    // edges of the chosen target, from the top down, and what passes through every node
    function follow() {
      reach = Array.from({ length: top + 1 }, () => new Float64Array(size));
      edges = [];
      const numbers = fixed ? given[data.places[chosen.place]] : transitions;
      const out = Array.from({ length: top + 1 }, () => new Float64Array(size));
      reach[chosen.layer][chosen.place] = 1;
      for (let layer = chosen.layer; layer > 0; layer--)
        for (let from = 0; from < size; from++) {
          if (!fixed && !reach[layer][from]) continue;
          for (let to = 0; to < size; to++) {
            const number = numbers[((layer - 1) * size + from) * size + to];
            const weight = fixed ? number : reach[layer][from] * number;
            if (!(weight > 0)) continue;
            edges.push({ layer, from, to, weight });
            out[layer][from] += weight;
            reach[layer - 1][to] += weight;
          }
        }
      if (fixed) reach[top] = out[top]; // a node of the top has no edge above it
      edges.sort((one, other) => other.weight - one.weight);
    }

    const words = (edge) => `${level(edge.layer)}: ${named(edge.from)} from ${named(edge.to)}, ${data.value} ${numeral(edge.weight)}`;
    function about(layer, place) {
      const into = edges.filter((edge) => edge.layer === layer && edge.from === place).slice(0, 4);
      const parts = into.map((edge) => `${named(edge.to)} ${numeral(edge.weight)}`);
      const from = parts.length ? `; from ${parts.join(", ")}${into.length === 4 ? ", \u2026" : ""}` : "";
      return `${level(layer)}, ${named(place)}: ${data.value} ${numeral(reach[layer][place])}${from}`;
    }

    function show(text, event) {
      said.textContent = text;
      if (!event) return;
      const box = root.getBoundingClientRect();
      tip.textContent = text;
      tip.hidden = false;
      const room = box.width - tip.offsetWidth;
      tip.style.left = Math.max(0, Math.min(event.clientX - box.left + 12, room)) + "px";
      tip.style.top = event.clientY - box.top + 16 + "px";
    }
    const hide = () => { tip.hidden = true; };

    function drawEdge(edge, most, group) {
      const [x0, y0, x1, y1] = [x(edge.from), y(edge.layer), x(edge.to), y(edge.layer - 1)];
      const bend = (y1 - y0) / 2;
      const d = `M${x0},${y0}C${x0},${y0 + bend} ${x1},${y1 - bend} ${x1},${y1}`;
      const one = make("g", { class: "edge", "data-layer": edge.layer, "data-from": data.places[edge.from], "data-to": data.places[edge.to], "data-weight": edge.weight }, group);
      const colour = edge.from === edge.to ? "var(--muted)" : "var(--accent)";
      make("path", { class: "line", d, fill: "none", "stroke-width": (0.6 + 9 * Math.sqrt(edge.weight / most)).toFixed(2), "stroke-opacity": (0.3 + 0.6 * Math.sqrt(edge.weight / most)).toFixed(3), style: `stroke:${colour}` }, one);
      make("path", { d, fill: "none", stroke: "transparent", "stroke-width": 9 }, one);
      one.addEventListener("pointermove", (event) => show(words(edge), event));
      one.addEventListener("pointerleave", hide);
    }

    function drawNode(layer, place, group, least) {
      const share = reach[layer][place], here = layer === chosen.layer && place === chosen.place;
      const node = make("g", { class: "node", role: "button", tabindex: here ? 0 : -1, "aria-pressed": here, "data-layer": layer, "data-pos": data.places[place], "data-value": share, "aria-label": about(layer, place) }, group);
      make("rect", { x: x(place) - Math.min(step, rise) / 2, y: y(layer) - 12, width: Math.min(step, rise), height: 24, fill: "transparent" }, node);
      const unit = Math.max(...reach[layer], 1e-12);
      const radius = share > 0 ? 2.4 + 4.6 * Math.sqrt(share / Math.max(unit, fixed ? unit : 1)) : 1.6;
      make("circle", { cx: x(place), cy: y(layer), r: (here ? Math.max(radius, 5) : radius).toFixed(2), "stroke-width": here ? 3 : 0, stroke: CHOSEN, "fill-opacity": share < least ? 0.35 : 1, style: `fill:${share > 0 ? "var(--accent)" : "var(--rule)"}` }, node);
      node.addEventListener("pointermove", (event) => show(about(layer, place), event));
      node.addEventListener("pointerleave", hide);
      node.addEventListener("focus", () => show(about(layer, place)));
      node.addEventListener("click", () => choose(layer, place, true));
      node.addEventListener("keydown", (event) => keys(event, layer, place));
      return node;
    }

    function keys(event, layer, place) {
      const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] };
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        choose(layer, place, true);
      } else if (moves[event.key]) {
        event.preventDefault();
        const [up, right] = moves[event.key];
        const next = nodes[Math.max(0, Math.min(top, layer + up))][Math.max(0, Math.min(size - 1, place + right))];
        nodes[layer][place].setAttribute("tabindex", -1);
        next.setAttribute("tabindex", 0);
        next.focus();
      }
    }

    function draw() {
      const least = Number(form.threshold.value);
      form.shown.textContent = numeral(least);
      const passing = edges.filter((edge) => edge.weight >= least && edge.weight > 0);
      const drawn = passing.slice(0, MOST_DRAWN);
      svg.replaceChildren();
      for (const [key, value] of Object.entries({ width, height, viewBox: `0 0 ${width} ${height}`, "font-family": "system-ui, sans-serif", "font-size": 11 })) svg.setAttribute(key, value);
      for (let layer = 0; layer <= top; layer++) {
        make("line", { x1: LEFT - 12, x2: width - RIGHT + 12, y1: y(layer), y2: y(layer), style: "stroke:var(--rule)" }, svg);
        make("text", { x: LEFT - 20, y: y(layer) + 4, "text-anchor": "end", style: "fill:var(--muted)" }, svg, short(level(layer)));
      }
      const most = edges.length ? edges[0].weight : 1;
      const lines = make("g", { class: "edges" }, svg);
      for (const edge of [...drawn].reverse()) drawEdge(edge, most, lines);
      const dots = make("g", { class: "nodes" }, svg);
      nodes = [];
      for (let layer = 0; layer <= top; layer++) nodes.push(Array.from({ length: size }, (_, place) => drawNode(layer, place, dots, least)));
      data.tokens.forEach((token, place) => {
        const below = y(0) + 16;
        const turn = upright ? { transform: `translate(${x(place) + 4},${below - 4}) rotate(-90)`, "text-anchor": "end" } : { x: x(place), y: below + 4, "text-anchor": "middle" };
        make("text", { ...turn, "font-family": "ui-monospace, Menlo, Consolas, monospace", style: `fill:var(--ink);font-weight:${place === chosen.place ? 700 : 400}` }, svg, short(token));
      });
      const cut = passing.length > drawn.length ? ` The strongest ${MOST_DRAWN} are drawn.` : "";
      root.querySelector(".flow-count").textContent = `${passing.length} of ${edges.length} edges reach the threshold.${cut} Grey: a position kept; blue: moved by attention. ${data.note}`;
    }

    function choose(asked, place, focus) {
      const layer = asked || top; // an input token is chosen as what it becomes at the top
      if (fixed && (layer !== top || !given[data.places[place]])) {
        said.textContent = `The edges of ${level(layer)}, ${named(place)} are not kept in this page; the menu has those that are.`;
        return;
      }
      chosen = { layer, place };
      form.target.value = String(place);
      form.layer.value = String(layer);
      follow();
      draw();
      hide();
      said.textContent = about(layer, place);
      frame.scrollLeft = x(place) - frame.clientWidth / 2; // a narrow page shows the target first
      if (focus) nodes[layer][place].focus({ preventScroll: true });
    }

    function save() {
      const copy = svg.cloneNode(true);
      for (const part of copy.querySelectorAll("rect, path:not(.line)")) part.remove();
      const text = new XMLSerializer().serializeToString(copy).replace(/var\(--(\w+)\)/g, (_, name) => data.light[name]);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
      link.download = root.id + ".svg";
      link.click();
    }

    data.tokens.forEach((token, place) => {
      if (!fixed || given[data.places[place]]) form.target.add(new Option(named(place), String(place)));
    });
    for (let layer = top; layer > 0; layer--) form.layer.add(new Option(level(layer), String(layer)));
    root.querySelector(".flow-layer").hidden = fixed;
    if (fixed) root.querySelector(".flow-layer").style.display = "none";
    form.threshold.value = String(data.threshold);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.threshold.addEventListener("input", draw);
    form.target.addEventListener("change", () => choose(Number(form.layer.value) || top, Number(form.target.value), false));
    form.layer.addEventListener("change", () => choose(Number(form.layer.value), Number(form.target.value), false));
    form.save.addEventListener("click", save);
    frame.addEventListener("scroll", hide);
    choose(top, chosen.place, false);
  }

  document.querySelectorAll(".flow").forEach(diagram);
  // a page without other figures is drawn now; with others, theirs is the last word
  if (!document.getElementById("themes")) document.documentElement.setAttribute("data-drawn", "0");
})();
