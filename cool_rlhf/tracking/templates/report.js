"use strict";
// Shows the values under the pointer. All text goes in through textContent.
for (const figure of document.querySelectorAll("figure[data-hover]")) {
  const data = JSON.parse(figure.dataset.hover);
  const svg = figure.querySelector("svg");
  const cursor = figure.querySelector(".cursor");
  const tip = figure.querySelector(".tip");
  const keys = [...figure.querySelectorAll(".key")];
  const hide = () => { tip.hidden = true; cursor.style.visibility = "hidden"; };
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const at = (event.clientX - box.left) * scale;
    let nearest = 0;
    data.x.forEach((x, i) => { if (Math.abs(x - at) < Math.abs(data.x[nearest] - at)) nearest = i; });
    tip.replaceChildren();
    const head = document.createElement("span");
    head.textContent = data.labels[nearest];
    tip.append(head);
    data.values.forEach((values, i) => {
      if (values[nearest] === null) return;
      const line = document.createElement("div");
      const swatch = document.createElement("span");
      swatch.className = keys[i].dataset.colour + " swatch";
      const name = document.createElement("span");
      name.textContent = keys[i].dataset.name;
      const value = document.createElement("b");
      value.textContent = values[nearest];
      line.append(swatch, name, value);
      tip.append(line);
    });
    cursor.setAttribute("x1", data.x[nearest]);
    cursor.setAttribute("x2", data.x[nearest]);
    cursor.style.visibility = "visible";
    tip.hidden = false;
    const outer = figure.getBoundingClientRect();
    const px = data.x[nearest] / scale + box.left - outer.left;
    const right = px + 14 + tip.offsetWidth > outer.width;
    tip.style.left = Math.max(4, right ? px - tip.offsetWidth - 14 : px + 14) + "px";
    tip.style.top = box.top - outer.top + 8 + "px";
  });
}
