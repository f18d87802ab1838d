(() => {
  "use strict";
  const themes = JSON.parse(document.getElementById("themes").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const theme = () => themes[dark.matches ? "dark" : "light"];
  const KINDS = { u1: Uint8Array, u2: Uint16Array, f4: Float32Array };
  const STAGES = ["#d8703f", "#3c9a6b", "#9466c9", "#b98a1e", "#4a7fe0"];
  const CHOSEN = "#eba11d";
  const NONE = "no label", ANY = "any";
  const FINEST = 65535;

  function decode(packed) {
    if (!packed) return null;
    const bytes = Uint8Array.from(atob(packed.bdata), (letter) => letter.charCodeAt(0));
    return new KINDS[packed.dtype](bytes.buffer);
  }

  const numeral = (value) => {
    if (!Number.isFinite(value)) return "";
    const size = Math.abs(value);
    const text = size !== 0 && (size < 0.0005 || size >= 1e5) ? value.toExponential(2) : value.toFixed(3);
    return text.replace("-", "\u2212");
  };
  const plain = (name) => name.replaceAll("_", " ");
  const escaped = (text) => text.replace(/[&<>]/g, (mark) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[mark]);

  function explore(root) {
    const data = JSON.parse(document.getElementById(root.id + "-data").textContent);
    const [layers, width] = data.exists.shape;
    const exists = decode(data.exists);
    const scores = data.scores.map((score) => ({
      ...score,
      values: decode(score.values), low: decode(score.low), high: decode(score.high),
      nullLow: decode(score.nullLow), nullHigh: decode(score.nullHigh),
    }));
    const patterns = decode(data.patterns);
    const side = data.tokens.length;
    const form = root.querySelector("form");
    const part = (name) => root.querySelector(".explorer-" + name);
    const nameOf = (layer, head) => `${data.prefix}L${layer}.H${head}`;
    const labelsOf = (name) => data.labels[name] || [];
    const stages = [...new Set(Object.values(data.labels).map((labels) => data.stages[labels[0]]))];
    const heads = [];
    for (let layer = 0; layer < layers; layer++)
      for (let head = 0; head < width; head++)
        if (exists[layer * width + head]) heads.push({ layer, head, cell: layer * width + head, name: nameOf(layer, head) });
    const named = new Map(heads.map((head) => [head.name, head]));
    let chosen = null;

    const fill = (select, options) => options.forEach(([text, value]) => select.add(new Option(text, value)));
    fill(form.score, scores.map((score, place) => [score.name, String(place)]));
    const earned = [...new Set(Object.values(data.labels).flat())];
    fill(form.label, [[ANY, ""], ...earned.map((label) => [label, label]), [NONE, NONE]]);
    fill(form.head, heads.map((head) => [[head.name, ...labelsOf(head.name)].join(" "), head.name]));
    form.first.value = 0;
    form.last.value = layers - 1;
    form.first.max = form.last.max = layers - 1;

    const score = () => scores[Number(form.score.value)];
    function beyond(one, cell) {
      return Boolean(one.nullHigh) && (one.values[cell] > one.nullHigh[cell] || one.values[cell] < one.nullLow[cell]);
    }
    function kept(head) {
      const one = score(), labels = labelsOf(head.name), wanted = form.label.value;
      if (wanted === NONE ? labels.length : wanted && !labels.includes(wanted)) return false;
      if (form.first.value !== "" && head.layer < Number(form.first.value)) return false;
      if (form.last.value !== "" && head.layer > Number(form.last.value)) return false;
      if (form.least.value !== "" && !(one.values[head.cell] >= Number(form.least.value))) return false;
      return !form.beyond.checked || beyond(one, head.cell);
    }

    function grid(value) {
      const rows = Array.from({ length: layers }, () => Array(width).fill(null));
      for (const head of heads) rows[head.layer][head.head] = value(head);
      return rows;
    }
    function words(head) {
      const one = score();
      const lines = [`<b>${escaped(head.name)}</b> ${escaped(labelsOf(head.name).join(", "))}`];
      lines.push(`${escaped(one.name)} ${numeral(one.values[head.cell]) || "undefined"}`);
      if (one.nullHigh) lines.push(`null ${numeral(one.nullLow[head.cell])} to ${numeral(one.nullHigh[head.cell])}`);
      return lines.join("<br>");
    }
    function limits(one, shown) {
      const values = shown.map((head) => one.values[head.cell]).filter(Number.isFinite);
      if (!values.length) return [0, 1];
      const top = Math.max(...values), bottom = Math.min(...values);
      if (one.signed || bottom < 0) {
        const reach = Math.max(Math.abs(top), Math.abs(bottom)) || 1;
        return [-reach, reach];
      }
      return [0, top || 1];
    }

    // squares around the heads that have labels, one colour for each stage, and around the head that is shown
    function outlines(cell) {
      const around = (some, name, colour, less) => ({
        type: "scatter", mode: "markers", name, showlegend: true, hoverinfo: "skip",
        x: some.map((head) => head.head), y: some.map((head) => head.layer),
        marker: { symbol: "square-open", size: Math.max(cell - less, 7), color: colour, line: { width: 2.5, color: colour } },
      });
      const traces = stages.map((stage, place) => around(
        heads.filter((head) => data.stages[labelsOf(head.name)[0]] === stage), escaped(stage), STAGES[place % STAGES.length], 12));
      return [...traces, around(chosen ? [chosen] : [], "shown below", CHOSEN, 3)];
    }

    const config = { displaylogo: false, displayModeBar: false, showTips: false };
    function drawMap() {
      const one = score(), shown = heads.filter(kept), shownNames = new Set(shown.map((head) => head.name));
      const box = part("map");
      const cell = Math.max(9, Math.min(60, (Math.min(box.clientWidth || 800, 900) - 150) / width));
      const [bottom, top] = limits(one, heads);
      const traces = [
        { type: "heatmap", z: grid((head) => (shownNames.has(head.name) ? null : 0)), text: grid(words), hoverongaps: false,
          hovertemplate: "%{text}<extra></extra>", showscale: false, xgap: 1, ygap: 1,
          colorscale: [[0, "rgba(139,147,158,0.13)"], [1, "rgba(139,147,158,0.13)"]] },
        { type: "heatmap", z: grid((head) => (shownNames.has(head.name) && Number.isFinite(one.values[head.cell]) ? one.values[head.cell] : null)),
          text: grid(words), hoverongaps: false, hovertemplate: "%{text}<extra></extra>", coloraxis: "coloraxis", xgap: 1, ygap: 1 },
        ...outlines(cell),
      ];
      const axis = { showgrid: false, zeroline: false, fixedrange: true, tickmode: "linear", tick0: 0 };
      const layout = {
        template: theme(), dragmode: false, hovermode: "closest",
        width: Math.min(box.clientWidth || 800, Math.max(width * cell + 150, 620)), height: Math.max(layers * cell + 120, 200),
        margin: { l: 46, r: 8, t: 34, b: 40 },
        coloraxis: { cmin: bottom, cmax: top, colorbar: { title: { text: escaped(plain(one.name).slice(0, 28)) }, len: 1 } },
        xaxis: { ...axis, title: { text: "head" }, range: [-0.5, width - 0.5], dtick: cell < 20 ? 4 : 1 },
        yaxis: { ...axis, title: { text: "layer" }, range: [layers - 0.5, -0.5], dtick: cell < 14 ? 4 : 1 },
        legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", itemclick: false, itemdoubleclick: false },
      };
      part("count").textContent = shown.length === heads.length
        ? `${heads.length} heads. Click one for its pattern and all its scores.`
        : `${shown.length} of ${heads.length} heads pass the filters; the others are grey.`;
      part("score").textContent = [one.summary, one.direction && `${one.direction}.`].filter(Boolean).join(". ");
      root.querySelector(".explorer-null").hidden = !one.nullHigh;
      return Plotly.react(box, traces, layout, config);
    }

    function drawPattern() {
      const place = data.patternHeads.indexOf(chosen.name), box = part("pattern");
      const note = part("missing");
      if (!patterns || place < 0) {
        note.textContent = `The pattern of ${chosen.name} is not kept in this page, which holds those of ${data.patternHeads.length} heads.`;
        Plotly.purge(box);
        return null;
      }
      note.textContent = data.cut ? `The first ${side} tokens.` : "";
      const z = [];
      for (let row = 0; row < side; row++)
        z.push(Array.from(patterns.subarray((place * side + row) * side, (place * side + row + 1) * side), (value) => value / FINEST));
      const ticks = { tickmode: "array", tickvals: data.ticks.map((_, place) => place), ticktext: data.ticks, tickfont: { size: side > 32 ? 8 : 10 },
        showgrid: false, zeroline: false, fixedrange: true };
      const layout = {
        template: theme(), dragmode: false, height: 470, margin: { l: 8, r: 8, t: 8, b: 8 },
        coloraxis: { cmin: 0, cmax: Math.max(...z.flat(), 0.01), colorbar: { title: { text: "attention" } } },
        xaxis: { ...ticks, title: { text: "key" }, tickangle: -90, range: [-0.5, side - 0.5], automargin: true },
        yaxis: { ...ticks, title: { text: "query" }, range: [side - 0.5, -0.5], automargin: true },
      };
      const text = z.map((row, query) => row.map((_, key) => `query ${query} ${data.ticks[query]}<br>key ${key} ${data.ticks[key]}`));
      const hovertemplate = "%{text}<br>attention %{z:.3f}<extra></extra>";
      return Plotly.react(box, [{ type: "heatmap", z, text, hovertemplate, coloraxis: "coloraxis" }], layout, config);
    }

    function row(cells, kind, tag = "td") {
      const line = document.createElement("tr");
      if (kind) line.className = kind;
      cells.forEach((text, place) => {
        const cell = document.createElement(tag);
        cell.textContent = text;
        if (place) cell.className = "number";
        line.append(cell);
      });
      return line;
    }

    function drawTable() {
      const table = document.createElement("table");
      const head = table.createTHead(), body = table.createTBody();
      head.append(row(["score", "value", "interval", "null band"], "", "th"));
      scores.forEach((one, place) => {
        const cell = chosen.cell, value = one.values[cell];
        if (!Number.isFinite(value)) return;
        const interval = one.low && Number.isFinite(one.low[cell]) ? `${numeral(one.low[cell])} to ${numeral(one.high[cell])}` : "";
        const band = one.nullHigh && Number.isFinite(one.nullHigh[cell])
          ? `${numeral(one.nullLow[cell])} to ${numeral(one.nullHigh[cell])}${beyond(one, cell) ? " *" : ""}` : "";
        body.append(row([plain(one.name), numeral(value), interval, band], place === Number(form.score.value) ? "chosen" : ""));
      });
      for (const [name, text] of data.more[chosen.name] || []) {
        const line = row([plain(name), text], "more");
        line.lastChild.colSpan = 3;
        line.lastChild.className = "";
        body.append(line);
      }
      part("table").replaceChildren(table);
    }

    function choose(name) {
      chosen = named.get(name) || heads[0];
      form.head.value = chosen.name;
      const labels = labelsOf(chosen.name);
      root.querySelector("h3").textContent = `${chosen.name}: ${labels.join(", ") || NONE}`;
      part("evidence").replaceChildren(...(data.evidence[chosen.name] || []).map((sentence) => {
        const item = document.createElement("li");
        item.textContent = sentence;
        return item;
      }));
      drawTable();
      return Promise.all([drawMap(), drawPattern()]);
    }
    const go = (name) => {
      history.replaceState(null, "", "#" + encodeURIComponent(name));
      return choose(name);
    };

    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => {
      if (event.target === form.head) return go(form.head.value);
      drawTable();
      return drawMap();
    });
    const asked = () => decodeURIComponent(window.location.hash.slice(1));
    window.addEventListener("hashchange", () => named.has(asked()) && choose(asked()));
    dark.addEventListener("change", () => choose(chosen.name));
    let waiting = 0;
    window.addEventListener("resize", () => {
      window.clearTimeout(waiting);
      waiting = window.setTimeout(drawMap, 80);
    });
    const first = heads.find((head) => labelsOf(head.name).length) || heads[0];
    return choose(named.has(asked()) ? asked() : first.name).then(() => {
      part("map").on("plotly_click", (event) => go(nameOf(event.points[0].y, event.points[0].x)));
    });
  }

  window.headscopeDrawn = [...document.querySelectorAll(".explorer")].map(explore);
})();
