// The page works without this script: the form is sent and the page comes back with the result. The script adds what
// needs none of the server's work: previews, the slider, the choice of a model, the heat map, the downloads; and it
// puts the result in place, so that the images stay chosen.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const ATTEMPTS = 60; // at a server that says it is busy
const NAMES = { rcnn: "Faster R-CNN", yolo: "YOLO", retinanet: "RetinaNet", ensemble: "Ensemble" };
const form = document.getElementById("form");
const input = document.getElementById("images");
const slider = document.getElementById("threshold");
const heat = document.getElementById("heat");
const result = document.getElementById("result");
const message = document.getElementById("message");
const status = document.getElementById("status");
const button = document.getElementById("predict");

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));
const chosenModel = () => form.querySelector("input[name=model]:checked")?.value;
const threshold = () => (slider ? Number(slider.value) : 0);

function element(name, attributes, text = "") {
  const drawn = ["g", "rect", "text"].includes(name);
  const node = drawn ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
}

function showError(text) {
  message.replaceChildren(...(text ? [element("p", { class: "error" }, text)] : []));
}

// --- choosing images -------------------------------------------------------------------------------------------------

async function pictureOf(file) {
  const image = element("img", { alt: "" });
  const show = (blob) => new Promise((resolve, reject) => {
    const address = URL.createObjectURL(blob);
    const done = (settle) => () => { URL.revokeObjectURL(address); settle(); };
    image.onload = done(resolve);
    image.onerror = done(reject);
    image.src = address;
  });
  try {
    await show(file); // by content, whatever its name
  } catch {
    const images = new FormData();
    images.append("images", file);
    try {
      const answer = await ask(form.dataset.preview, images, 10);
      if (answer.ok) await show(await answer.blob());
    } catch { /* it stays without a picture; predicting will say what is wrong */ }
  }
  return image;
}

let choice = 0;
async function preview() {
  const mine = ++choice;
  const files = [...input.files];
  const list = document.getElementById("previews");
  list.replaceChildren();
  list.hidden = files.length === 0;
  status.textContent = "";
  showError(selectionError(files));
  if (message.textContent) return;
  const items = files.map((file, number) => {
    const item = element("li", {});
    item.append(element("div", {}, /\.zip$/i.test(file.name) ? `Zip: ${file.name}` : `Image ${number + 1}: ${file.name}`));
    list.append(item);
    return item;
  });
  for (const [number, file] of files.entries()) {
    if (/\.zip$/i.test(file.name)) continue; // what is in it, the server will say
    const image = await pictureOf(file);
    if (mine !== choice) return;
    items[number].prepend(image);
  }
}

function selectionError(files) {
  const { megabytes, images } = form.dataset;
  if (files.length > images) return `${files.length} images are chosen: send at most ${images}, all of one study.`;
  const size = files.reduce((sum, file) => sum + file.size, 0);
  if (size > megabytes * 2 ** 20) return `That is too much at once: send at most ${megabytes} MB in all.`;
  return "";
}

// --- asking the server ----------------------------------------------------------------------------------------------

async function ask(address, body, attempts, onBusy = () => {}) {
  for (let attempt = 1; ; attempt++) {
    const answer = await fetch(address, { method: "POST", body });
    if (answer.status !== 503 || attempt >= attempts) return answer;
    onBusy();
    await pause(Number(answer.headers.get("Retry-After")) || 2);
  }
}

async function predict(event) {
  event.preventDefault();
  const problem = selectionError([...input.files]);
  showError(problem);
  if (problem) return;
  button.disabled = true;
  form.setAttribute("aria-busy", "true");
  status.textContent = "Predicting …";
  try {
    const onBusy = () => { status.textContent = "The server is busy: waiting for our turn …"; };
    const answer = await ask(form.action, new FormData(form), ATTEMPTS, onBusy);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const answered = page.getElementById("message");
    if (!answered) throw new Error("no page");
    showError(answered.textContent.trim());
    status.textContent = "";
    if (answer.ok) {
      result.replaceChildren(...page.getElementById("result").childNodes);
      start();
      document.title = page.title;
      document.getElementById("result-title").focus();
      announce();
    }
  } catch {
    status.textContent = "";
    showError("The server gave no answer. It may have ended, or the images are more than it takes: try again.");
  } finally {
    button.disabled = false;
    form.removeAttribute("aria-busy");
  }
}

// --- the result -----------------------------------------------------------------------------------------------------

let data = null;
function start() {
  const source = document.getElementById("data");
  data = source ? JSON.parse(source.textContent) : null;
  document.documentElement.classList.toggle("has-result", Boolean(data));
  if (data) draw();
}

const shown = (image) => (image.boxes[chosenModel()] ?? []).filter((box) => box.score >= threshold());

function draw() {
  document.getElementById("threshold-value")?.replaceChildren(threshold().toFixed(2));
  if (!data) return;
  for (const card of result.querySelectorAll(".image")) {
    const image = data.images[card.dataset.image];
    const picture = card.querySelector(".picture");
    const unit = Number(picture.dataset.unit);
    const boxes = shown(image);
    picture.dataset.model = chosenModel() ?? "";
    picture.querySelector(".boxes").replaceChildren(...boxes.map((box, index) => {
      const group = element("g", { "data-box": index + 1 });
      const [width, height] = [box.right - box.left, box.bottom - box.top];
      const place = { x: box.left + 6 * unit, y: box.top + 34 * unit, "font-size": 34 * unit, "stroke-width": 6 * unit };
      group.append(element("rect", { class: "frame", x: box.left, y: box.top, width, height }));
      group.append(element("text", place, `${index + 1} · ${box.score.toFixed(2)}`));
      return group;
    }));
    const hot = heat?.checked ?? false;
    picture.querySelector(".heat")?.setAttribute("visibility", hot ? "visible" : "hidden");
    const legend = card.querySelector(".legend");
    if (legend) legend.hidden = !hot;
    const table = card.querySelector(".boxlist");
    if (!table) continue;
    card.querySelector(".count").textContent =
      `${boxes.length} of ${image.boxes[chosenModel()].length} boxes score ${threshold().toFixed(2)} or more`;
    table.hidden = boxes.length === 0;
    table.tBodies[0].replaceChildren(...boxes.map((box, index) => {
      const row = element("tr", { "data-box": index + 1 });
      row.append(element("th", { scope: "row" }, `${index + 1}`), element("td", {}, box.score.toFixed(2)));
      for (const edge of ["left", "top", "right", "bottom"]) row.append(element("td", {}, `${Math.round(box[edge])}`));
      return row;
    }));
  }
}

let later = 0;
function announce() {
  clearTimeout(later);
  later = setTimeout(() => {
    const model = chosenModel();
    if (!data || !model) return;
    const count = data.images.reduce((sum, image) => sum + shown(image).length, 0);
    status.textContent = `${NAMES[model]}: ${count} ${count === 1 ? "box" : "boxes"} from score ${threshold().toFixed(2)}.`;
  }, 400);
}

function mark(event) {
  const box = event.target.closest?.("[data-box]");
  for (const node of result.querySelectorAll(".marked")) node.classList.remove("marked");
  if (!box) return;
  const image = box.closest(".image");
  for (const node of image.querySelectorAll(`[data-box="${box.dataset.box}"]`)) node.classList.add("marked");
}

// --- downloads ------------------------------------------------------------------------------------------------------

function save(blob, name) {
  const address = URL.createObjectURL(blob);
  const link = element("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

async function loaded(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return image;
}

function wrapped(text, paint, width) {
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = `${lines.at(-1)} ${word}`.trim();
    if (lines.at(-1) && paint.measureText(longer).width > width) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines;
}

async function savePicture(card) {
  const image = data.images[card.dataset.image];
  const picture = card.querySelector(".picture");
  const base = await loaded(picture.querySelector(".preview").getAttribute("href"));
  const canvas = element("canvas", { width: base.naturalWidth, height: base.naturalHeight });
  const [paint, scale] = [canvas.getContext("2d"), base.naturalWidth / image.columns];
  paint.drawImage(base, 0, 0);
  const hot = picture.querySelector(".heat");
  if (hot && heat.checked) paint.drawImage(await loaded(hot.getAttribute("href")), 0, 0, canvas.width, canvas.height);
  const size = Math.max(14, Math.max(canvas.width, canvas.height) / 36);
  const colour = getComputedStyle(picture).getPropertyValue("--box") || "#fff";
  const write = (text, x, y) => {
    paint.lineWidth = size / 5;
    paint.strokeStyle = "#000";
    paint.strokeText(text, x, y);
    paint.fillStyle = colour;
    paint.fillText(text, x, y);
  };
  paint.font = `bold ${size}px system-ui, sans-serif`;
  paint.lineJoin = "round";
  shown(image).forEach((box, index) => {
    paint.lineWidth = Math.max(2, size / 9);
    paint.strokeStyle = colour;
    paint.strokeRect(box.left * scale, box.top * scale, (box.right - box.left) * scale, (box.bottom - box.top) * scale);
    write(`${index + 1} · ${box.score.toFixed(2)}`, box.left * scale + size / 5, box.top * scale + size);
  });
  wrapped(data.notice, paint, canvas.width - size).forEach((line, index, lines) => {
    write(line, size / 2, canvas.height - size / 2 - (lines.length - 1 - index) * size * 1.2);
  });
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  save(blob, `image-${Number(card.dataset.image) + 1}-${chosenModel() ?? "study"}.png`);
}

// --- what the person does -------------------------------------------------------------------------------------------

document.documentElement.classList.add("scripted");
form.addEventListener("submit", predict);
form.addEventListener("input", (event) => {
  if (event.target === input) return;
  draw();
  announce();
});
input.addEventListener("change", preview);
result.addEventListener("mouseover", mark);
result.addEventListener("click", (event) => {
  const clicked = event.target.closest("button");
  if (!clicked) return;
  savePicture(clicked.closest(".image"));
});
const drop = document.getElementById("drop");
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // an image that misses the place must not replace the page
    drop.classList.toggle("over", kind.startsWith("drag") && kind !== "dragleave");
    if (kind === "drop" && event.dataTransfer.files.length) {
      input.files = event.dataTransfer.files;
      preview();
    }
  });
}
start();
