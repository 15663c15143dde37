// Draws the plots of the page in its colours and at its width, and again when either changes.
"use strict";
(async () => {
  const FONT = { family: "system-ui, sans-serif", size: 12 };
  const LEGEND = { orientation: "h", x: 0, xanchor: "left", xref: "container", y: 0, yanchor: "bottom", yref: "container", traceorder: "normal" };
  const canHover = matchMedia("(hover: hover)").matches; // a finger scrolls the page, and needs no bar of buttons
  const BUTTONS = [["toImage", "zoom2d", "pan2d", "resetScale2d"]];
  const CONFIG = { displaylogo: false, displayModeBar: canHover ? "hover" : false, modeBarButtons: BUTTONS };
  const LINE = 16; // pixels of height of a line of text
  const root = document.documentElement;
  const pen = document.createElement("canvas").getContext("2d");
  const drawn = new Map();

  // Follows "@ink" in every value whose key ends with "color".
  function coloured(value, key = "") {
    if (Array.isArray(value)) return value.map((item) => coloured(item, key));
    if (value !== null && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, coloured(item, name)]));
    if (typeof value !== "string" || !key.endsWith("color") || !value.startsWith("@")) return value;
    return getComputedStyle(root).getPropertyValue(`--${value.slice(1)}`).trim();
  }

  function layoutOf(spec, width) {
    const base = {
      font: { ...FONT, color: "@ink" }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 4, r: 10, t: 6, b: 4 }, legend: LEGEND, hovermode: "closest",
      hoverlabel: { align: "left", namelength: -1, bgcolor: "@page", bordercolor: "@soft", font: { ...FONT, color: "@ink" } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: "@soft", activecolor: "@ink" },
      dragmode: canHover ? "zoom" : false,
    };
    return coloured({ ...base, ...spec.layout, width, height: spec.height });
  }

  function measured(text) {
    const shown = document.createElement("textarea"); // what the entities in it stand for
    shown.innerHTML = text;
    pen.font = `${FONT.size}px ${FONT.family}`;
    return pen.measureText(shown.value).width + 6;
  }

  // Boxes along the lines of a plot, which labels must not cover.
  function linesOf(plot, toX, toY) {
    const boxes = [];
    for (const trace of plot.data.filter((one) => (one.mode ?? "").includes("lines")))
      for (let i = 1; i < trace.x.length; i++) {
        const [ax, ay, bx, by] = [toX(trace.x[i - 1]), toY(trace.y[i - 1]), toX(trace.x[i]), toY(trace.y[i])];
        const corners = trace.line?.shape === "hv" ? [[ax, ay], [bx, ay], [bx, by]] : [[ax, ay], [bx, by]];
        for (let c = 1; c < corners.length; c++) boxes.push(...along(corners[c - 1], corners[c]));
      }
    return boxes;
  }

  function along([ax, ay], [bx, by]) {
    const steps = Math.ceil(Math.hypot(bx - ax, by - ay) / 4) || 1;
    return Array.from({ length: steps + 1 }, (_, i) => {
      const [x, y] = [ax + ((bx - ax) * i) / steps, ay + ((by - ay) * i) / steps];
      return [x - 2, y - 2, x + 2, y + 2];
    });
  }

  function annotationOf(label, place) {
    const font = { ...FONT, color: coloured("@ink", "color") };
    const base = { x: label.dataX, y: label.dataY, text: label.text, font, xanchor: "center", yanchor: "middle", borderpad: 0 };
    const [dx, dy] = [place.x - label.x, place.y - label.y];
    if (!place.far) return { ...base, showarrow: false, xshift: dx, yshift: -dy };
    const line = { arrowhead: 0, arrowwidth: 0.8, arrowcolor: coloured("@soft", "color"), standoff: MARK - 1 };
    return { ...base, showarrow: true, ax: dx, ay: dy, ...line };
  }

  async function label(plot, spec) {
    if (spec.labels.length === 0) return;
    const { xaxis, yaxis } = plot._fullLayout;
    const [toX, toY] = [(value) => xaxis.d2p(value), (value) => yaxis.d2p(value)];
    const along_x = (value) => (xaxis.type === "log" ? Math.log10(value) : value);
    const along_y = (value) => (yaxis.type === "log" ? Math.log10(value) : value);
    const labels = spec.labels
      .map(([x, y, text]) => ({
        x: toX(x), y: toY(y), dataX: along_x(x), dataY: along_y(y), text, width: measured(text), height: LINE,
      }))
      .filter(({ x, y }) => x >= 0 && y >= 0 && x <= xaxis._length && y <= yaxis._length);
    const places = placeLabels(labels, [xaxis._length, yaxis._length], linesOf(plot, toX, toY));
    const placed = labels.flatMap((one, i) => (places[i] === null ? [] : [annotationOf(one, places[i])]));
    await Plotly.relayout(plot, { annotations: [...coloured(spec.layout.annotations), ...placed] });
  }

  async function draw(plot, width = plot.clientWidth) {
    const spec = JSON.parse(plot.nextElementSibling.textContent);
    const first = !drawn.has(plot);
    drawn.set(plot, width);
    await Plotly.react(plot, coloured(spec.traces), layoutOf(spec, width), CONFIG);
    await label(plot, spec);
    if (!first) return;
    plot.on("plotly_relayout", (changed) => {
      if (Object.keys(changed).some((name) => /^[xy]axis\.(range|autorange)/.test(name))) label(plot, spec);
    });
  }

  const plots = [...document.querySelectorAll(".plot")];
  const redraw = (width) => Promise.all(plots.map((plot) => draw(plot, width)));

  function forPrint(on) {
    root.classList.toggle("print", on);
    redraw(on ? 640 : undefined);
  }

  // plotly.js is in the page packed: a third of its size.
  async function unpackLibrary() {
    const bytes = Uint8Array.from(atob(document.getElementById("library").textContent), (one) => one.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  if (plots.length > 0) await unpackLibrary();
  await redraw();
  document.getElementById("plotless").remove();
  root.dataset.plots = plots.length; // told to whoever waits for them
  const observer = new ResizeObserver((changes) => {
    for (const { target } of changes) if (target.clientWidth !== drawn.get(target)) draw(target);
  });
  for (const plot of plots) observer.observe(plot);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
  addEventListener("beforeprint", () => forPrint(true));
  addEventListener("afterprint", () => forPrint(false));
})();
