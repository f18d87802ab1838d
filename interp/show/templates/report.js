(() => {
  "use strict";
  const themes = JSON.parse(document.getElementById("themes").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const print = window.matchMedia("print");
  const NARROWEST_LABEL = 8;
  let printing = print.matches;

  const plots = [...document.querySelectorAll(".plot")].map((element) => {
    const spec = JSON.parse(document.getElementById(element.id + "-data").textContent);
    const layout = spec.layout;
    const natural = { width: Number(element.dataset.width) || 0, height: Number(element.dataset.height) };
    delete layout.width;
    delete layout.height;
    const menus = layout.updatemenus || [];
    delete layout.updatemenus;
    if (menus.length) {
      // the room that the menu would have taken inside the figure
      const room = (layout.meta && layout.meta.menu_room) || 0;
      layout.margin = { ...layout.margin, t: layout.margin.t - room };
      natural.height -= room;
    }
    return { element, data: spec.data, layout, natural, menus };
  });

  const theme = () => themes[dark.matches && !printing ? "dark" : "light"];

  // what a sheet of paper holds between its margins, in pixels
  const SHEET = 660;

  // heatmaps keep the shape of their cells when the column is narrower than they would like
  function size(plot) {
    const { natural, layout, element } = plot;
    const frame = element.parentElement.clientWidth;
    const width = Math.min(natural.width || frame, frame, printing ? SHEET : Infinity);
    const edges = layout.meta && layout.meta.edges;
    if (!edges || !natural.width) return { width, height: natural.height };
    const share = Math.max((width - edges[0]) / (natural.width - edges[0]), 0.3);
    return { width, height: Math.round(edges[1] + (natural.height - edges[1]) * share) };
  }

  // labels of tokens that would run into each other are left out; pointing at a cell names them all the same
  function crowded(plot) {
    const full = plot.element._fullLayout;
    const update = {};
    for (const key of Object.keys(full)) {
      if (!/^[xy]axis\d*$/.test(key)) continue;
      const axis = full[key];
      if (axis.tickmode !== "array" || !axis.tickvals || axis.tickvals.length < 2) continue;
      const asked = !(plot.layout[key] && plot.layout[key].showticklabels === false);
      const room = axis._length / Math.abs(axis.range[1] - axis.range[0]);
      const steps = Math.abs(axis.tickvals[1] - axis.tickvals[0]);
      const show = asked && room * steps >= NARROWEST_LABEL;
      if (axis.showticklabels !== show) update[key + ".showticklabels"] = show;
    }
    return Object.keys(update).length ? Plotly.relayout(plot.element, update) : null;
  }

  function layoutNow(plot) {
    const now = size(plot);
    plot.element.style.height = now.height + "px";
    return { ...now, template: theme() };
  }

  function draw(plot) {
    const layout = { ...plot.layout, ...layoutNow(plot), dragmode: false };
    for (const key of Object.keys(layout)) {
      // a finger that moves over a figure scrolls the page
      if (/^[xy]axis\d*$/.test(key)) layout[key] = { ...layout[key], fixedrange: true };
    }
    const config = { displaylogo: false, displayModeBar: false, showTips: false };
    return Plotly.newPlot(plot.element, plot.data, layout, config).then(() => crowded(plot));
  }

  const fit = (plot) => Plotly.relayout(plot.element, layoutNow(plot)).then(() => crowded(plot));
  const fitAll = () => plots.forEach(fit);

  // for a paper: as vectors, in the light colours, on white
  async function save(plot) {
    const layout = { ...plot.element.layout, ...plot.natural, template: themes.light, paper_bgcolor: "#ffffff" };
    if (!layout.width) layout.width = plot.element.clientWidth;
    const picture = { data: plot.element.data, layout };
    const address = await Plotly.toImage(picture, { format: "svg", width: layout.width, height: layout.height });
    const link = document.createElement("a");
    link.href = address;
    link.download = plot.element.id + ".svg";
    link.click();
  }

  // figures escape their text for the plotting library, a menu's option takes it plain
  const NAMED = { lt: "<", gt: ">", amp: "&", quot: '"', "#x27": "'" };
  const unescape = (text) => text.replace(/&(lt|gt|amp|quot|#x27);/g, (_, name) => NAMED[name]);

  // a menu drawn inside a figure cannot follow the page's colours or the keyboard: an ordinary one can
  function addMenus(plot) {
    const holder = document.getElementById(plot.element.id + "-controls");
    for (const menu of plot.menus) {
      const label = document.createElement("label");
      const select = document.createElement("select");
      label.append("Head", select);
      menu.buttons.forEach((button, place) => select.add(new Option(unescape(button.label), String(place))));
      select.addEventListener("change", () => {
        const button = menu.buttons[Number(select.value)];
        Plotly[button.method](plot.element, ...button.args);
      });
      holder.append(label);
      holder.style.display = "block";
    }
  }

  function onPrint(isPrinting) {
    if (printing === isPrinting) return;
    printing = isPrinting;
    fitAll();
  }

  const drawn = plots.map((plot) => {
    addMenus(plot);
    const button = document.getElementById(plot.element.id + "-save");
    if (button) button.addEventListener("click", () => save(plot));
    return draw(plot);
  });
  Promise.all([...drawn, ...(window.headscopeDrawn || [])]).then(() => document.documentElement.setAttribute("data-drawn", String(plots.length)));
  dark.addEventListener("change", fitAll);
  print.addEventListener("change", (event) => onPrint(event.matches));
  window.addEventListener("beforeprint", () => onPrint(true));
  window.addEventListener("afterprint", () => onPrint(false));
  let waiting = 0;
  window.addEventListener("resize", () => {
    window.clearTimeout(waiting);
    waiting = window.setTimeout(fitAll, 80);
  });
})();
