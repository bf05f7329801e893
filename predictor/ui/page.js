// The page at /ui: a form made from the model's own schema, and the pictures that came of it.
//
// Prompts go into requests and nowhere else: nothing is stored, and closing the tab forgets them.

const POLL = 2000; // milliseconds between two looks at a server that is not ready
const QUIET = 10_000; // milliseconds between two steps that a screen reader is told of
const PATIENCE = 5; // seconds to wait where a full server does not say how long

// Shown at once and in this order; every other parameter, known here or not, is under "More".
const PLAIN = ["num_inference_steps", "guidance_scale", "width", "height", "num_images_per_prompt", "seed"];
const LABELS = {
  num_inference_steps: "Steps",
  guidance_scale: "Guidance",
  num_images_per_prompt: "Pictures",
  output_format: "Format",
  output_compression: "Quality",
};

const $ = (id) => document.getElementById(id);
const controls = new Map(); // name of a parameter → {read, write}
const running = []; // tiles at work, the oldest first
const roomy = matchMedia("(min-width: 56rem)"); // as in page.css: the form and the pictures are side by side
let model = null; // its name, once the server has told it

// ---------------------------------------------------------------- the server

/** What the server, or nobody, answered. `status` 0: nobody. `after`: seconds to wait, where that was told. */
class Problem extends Error {
  constructor(message, status = 0, after = 0) {
    super(message);
    this.status = status;
    this.after = after;
  }
}

/** A good answer, or a Problem in the server's own words. */
async function request(path, options) {
  const answer = await fetch(path, options).catch((error) => {
    throw options?.signal?.aborted ? error : new Problem("The server cannot be reached.");
  });
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => null); // an ingress speaks HTML
  const bare = `The server answered ${answer.status} ${answer.statusText}`.trimEnd() + ".";
  const message = typeof told?.error === "string" ? told.error : bare;
  throw new Problem(message, answer.status, Number(answer.headers.get("retry-after")) || 0);
}

/** Asks until there is a good answer, and tells what stands in the way. */
async function patiently(path, tell, signal) {
  for (;;) {
    try {
      return await (await request(path, { signal })).json();
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      showReadiness("waiting", problem.message);
      tell?.(problem.message);
    }
    await sleep(POLL, signal);
  }
}

async function untilReady(tell, signal) {
  await patiently(`v1/models/${model}`, tell, signal);
  showReadiness("ready", "ready");
}

/** Server-sent events as [name, data], https://html.spec.whatwg.org/multipage/server-sent-events.html. Ends with the
 *  connection, whoever ended it: who listens knows what is missing. */
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch(() => ({ done: true }));
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const all = (field) => lines.filter((line) => line.startsWith(field)).map((line) => line.slice(field.length).trimStart());
      if (all("data:").length) yield [all("event:").join(""), JSON.parse(all("data:").join("\n"))];
    }
  }
}

function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

const predictPath = () => `v1/models/${model}:predict`;

/** For a shell. Pictures come as they are when there is one, and as JSON when there are several. */
function curl(body) {
  const { num_images_per_prompt: count, output_format: format = "png" } = body.parameters ?? {};
  const file = count > 1 ? "pictures.json" : `picture.${extension(format)}`;
  // As README has it: spaces between the parts of an object, none inside its braces. Strings hold no raw line breaks.
  const json = JSON.stringify(body, null, 1).replace(/(?<=[{[])\n\s*|\n\s*(?=[}\]])/g, "").replace(/\n\s*/g, " ");
  return `curl ${quoted(new URL(predictPath(), document.baseURI).href)} \\\n  -d ${quoted(json)} \\\n  -o ${file}`;
}

const quoted = (text) => (/^[\w./:@-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
const extension = (format) => (format === "jpeg" ? "jpg" : format);

// ---------------------------------------------------------------- the form

/** A row for one property of the schema. */
function field(name, schema) {
  const row = $("field").content.firstElementChild.cloneNode(true);
  const control = widget(schema);
  const label = LABELS[name] ?? (name[0].toUpperCase() + name.slice(1)).replaceAll("_", " ");
  control.element.id = `parameter-${name}`;
  control.element.name = name;
  row.querySelector("label").htmlFor = control.element.id;
  row.querySelector("label").textContent = label;
  row.querySelector(".hint").id = `hint-${name}`;
  row.querySelector(".hint").textContent = hint(schema);
  control.element.setAttribute("aria-describedby", `hint-${name}`);
  row.classList.toggle("wide", control.element.matches("textarea, select") && !(schema.enum?.join("").length < 20));
  row.append(control.element);
  controls.set(name, control);
  return row;
}

/** `read` gives undefined for what is left to the server; `write(undefined)` leaves it. */
function widget(schema) {
  if (schema.enum) return choice(schema);
  if (schema.type === "boolean") return checkbox(schema);
  if (schema.type === "integer" || schema.type === "number") return number(schema);
  return text(schema);
}

function number({ type, minimum, maximum, multipleOf, default: fallback }) {
  const element = Object.assign(document.createElement("input"), {
    type: "number",
    inputMode: type === "integer" ? "numeric" : "decimal",
    min: minimum ?? "",
    max: most(maximum) ?? "",
    step: multipleOf ?? (type === "integer" ? 1 : "any"),
    placeholder: fallback === undefined ? "auto" : "",
  });
  return {
    element,
    read: () => (element.value === "" || element.valueAsNumber === fallback ? undefined : element.valueAsNumber),
    write: (value) => (element.value = value ?? fallback ?? ""),
  };
}

// JavaScript's numbers are exact up to here; the server's seeds go further.
const most = (maximum) => (maximum > Number.MAX_SAFE_INTEGER ? Number.MAX_SAFE_INTEGER : maximum);

function choice({ enum: values, default: fallback }) {
  const element = document.createElement("select");
  if (fallback === undefined) element.add(new Option("the model's own", ""));
  for (const value of values) element.add(new Option(value, value));
  return {
    element,
    read: () => (element.value === (fallback ?? "") ? undefined : values.find((value) => String(value) === element.value)),
    write: (value) => (element.value = value ?? fallback ?? ""),
  };
}

function checkbox({ default: fallback = false }) {
  const element = Object.assign(document.createElement("input"), { type: "checkbox" });
  return {
    element,
    read: () => (element.checked === fallback ? undefined : element.checked),
    write: (value) => (element.checked = value ?? fallback),
  };
}

/** Plain text; for what is neither text nor anything above, JSON. No maxLength: a browser would cut what is pasted, and say
 *  nothing. */
function text({ type, default: fallback }) {
  const element = Object.assign(document.createElement("textarea"), { rows: 2 });
  const plain = type === "string";
  const shown = (value) => (value === undefined ? "" : plain ? value : JSON.stringify(value));
  const check = () => element.setCustomValidity(plain || isJson(element.value || "null") ? "" : "This must be JSON.");
  if (!plain) element.placeholder = "JSON";
  element.addEventListener("input", check);
  return {
    element,
    read() {
      if (element.value === shown(fallback) || !element.checkValidity()) return undefined;
      return plain ? element.value : JSON.parse(element.value || "null");
    },
    write(value) {
      element.value = shown(value ?? fallback);
      check();
    },
  };
}

function isJson(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

function hint({ description, minimum, maximum, multipleOf }) {
  const by = multipleOf ? ` by ${multipleOf}` : "";
  const range = minimum === undefined || maximum > Number.MAX_SAFE_INTEGER ? "" : unbroken(`${minimum} to ${maximum}${by}`);
  return [description, range].filter(Boolean).join(" · ");
}

function build(schema) {
  const { parameters } = schema.properties;
  const names = Object.keys(parameters.properties);
  const plain = PLAIN.filter((name) => names.includes(name));
  const advanced = names.filter((name) => !plain.includes(name));
  $("plain").append(...plain.map((name) => field(name, parameters.properties[name])));
  $("advanced").append(...advanced.map((name) => field(name, parameters.properties[name])));
  $("more").hidden = !advanced.length;
  $("parameters").hidden = false;
  $("parameters").open = roomy.matches;
  fill({});
}

/** What the form asks for. What it leaves to the server is left out. */
function asked() {
  const parameters = {};
  for (const [name, { read }] of controls) {
    const value = read();
    if (value !== undefined) parameters[name] = value;
  }
  const body = { prompt: $("prompt").value };
  return Object.keys(parameters).length ? { ...body, parameters } : body;
}

function fill(parameters) {
  for (const [name, { write }] of controls) write(parameters[name]);
  showCommand();
}

function showCommand() {
  if (model) $("command").textContent = curl(asked());
}

function start() {
  if (!$("form").reportValidity()) return;
  begin(asked());
}

// ---------------------------------------------------------------- one request, from its start to its picture

function begin(body) {
  const tile = new Tile(body);
  $("gallery").prepend(tile.element);
  const { top } = tile.element.getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) tile.element.scrollIntoView({ block: "center" });
  tile.work();
  return tile;
}

class Tile {
  constructor(body) {
    this.body = body;
    this.element = $("tile").content.firstElementChild.cloneNode(true);
    this.image = this.part("img");
    this.bar = this.part("progress");
    this.part("h3").textContent = body.prompt;
    const { width = size("width"), height = size("height") } = body.parameters ?? {};
    if (width && height) this.part(".frame").style.aspectRatio = `${width} / ${height}`;
    this.on(".cancel", () => this.control.abort());
    this.on(".now", () => this.hurry());
    this.on(".retry", () => this.work());
    this.on(".remove", () => this.remove());
    this.on(".copy", (event) => copy(this.part("pre"), event.target));
    this.on(".again", () => {
      $("prompt").value = this.body.prompt;
      fill(this.body.parameters);
      begin(this.body).part(".cancel").focus(); // or a keyboard would be left at the old picture
    });
  }

  part(selector) {
    return this.element.querySelector(selector);
  }

  on(selector, action) {
    this.part(selector).addEventListener("click", action);
  }

  /** Asks until there is a picture, an error that waiting does not mend, or a cancellation. */
  async work() {
    this.control = new AbortController();
    running.push(this);
    this.show("queued", "sending");
    say("Started.");
    try {
      const prediction = await this.persist(this.control.signal);
      this.finish(prediction, (performance.now() - this.begun) / 1000);
    } catch (problem) {
      this.fail(problem);
    } finally {
      running.splice(running.indexOf(this), 1);
    }
  }

  fail(problem) {
    if (this.control.signal.aborted) {
      this.show("cancelled", `cancelled ${this.where}`);
      return say("Cancelled.");
    }
    const known = problem instanceof Problem;
    const message = known ? problem.message : "This page has failed; the browser's console says where.";
    this.show("failed", message);
    say(message);
    if (!known) throw problem;
    if (!problem.status) untilReady();
  }

  async persist(signal) {
    for (;;) {
      try {
        return await this.stream(signal);
      } catch (problem) {
        if (problem.status === 429) await this.queue(problem, signal);
        else if (problem.status === 503) await this.wake(problem, signal);
        else throw problem;
      }
    }
  }

  /** Sends the request and shows what is told of it. */
  async stream(signal) {
    this.begun = performance.now();
    this.where = "before it began";
    const headers = { accept: "text/event-stream", "content-type": "application/json" };
    const answer = await request(predictPath(), { method: "POST", headers, body: JSON.stringify(this.body), signal });
    showReadiness("ready", "ready");
    for await (const [event, data] of events(answer)) {
      if (event === "prediction") return data;
      if (event === "error") throw new Problem(data.error, data.status, data.retry_after);
      if (event === "progress" || event === "preview") this.progress(data);
    }
    signal.throwIfAborted();
    throw new Problem(`The connection was lost ${this.where}. The picture did not arrive.`);
  }

  progress({ state = "running", step, of, image }) {
    if (state === "queued") return this.show("queued", "waiting for its turn");
    this.where = `at step ${step} of ${of}`;
    this.show("running", `step ${step} of ${of}`);
    this.bar.max = of;
    this.bar.value = step;
    if (image) this.picture(`data:${mediaType(image)};base64,${image.b64}`, "Preview of: ");
    if (step < of) say(`Step ${step} of ${of}.`, QUIET);
  }

  /** A full server says when it will have room. */
  async queue(problem, signal) {
    const end = Date.now() + 1000 * (problem.after || PATIENCE);
    const hurried = new Promise((resolve) => (this.hurry = resolve)).then(() => true);
    say(`${problem.message}. Trying again in ${problem.after || PATIENCE} seconds.`);
    for (let left; (left = Math.ceil((end - Date.now()) / 1000)) > 0; ) {
      this.show("full", `${problem.message}; trying again in ${left} s`);
      if (await Promise.race([sleep(1000, signal), hurried])) break;
    }
    this.show("queued", "sending");
  }

  /** A server that is not ready says what it is doing; its own readiness is asked, not with the whole request. */
  async wake(problem, signal) {
    const tell = (text) => {
      if (!this.told.startsWith(text)) say(text);
      this.show("asleep", `${text}; this starts by itself`);
    };
    tell(problem.message);
    showReadiness("waiting", problem.message);
    await sleep(POLL, signal);
    await untilReady(tell, signal);
    this.show("queued", "sending");
  }

  /** Several pictures become several tiles: each can be made again alone, with its own seed. */
  finish(prediction, seconds) {
    const images = prediction.images ?? [prediction.image];
    const tiles = [this, ...images.slice(1).map(() => new Tile(this.body))];
    let last = this.element;
    tiles.forEach((tile, i) => {
      tile.keep(prediction, i, seconds);
      if (tile !== this) last.after(tile.element);
      last = tile.element;
    });
    say(images.length > 1 ? `${images.length} pictures are ready.` : `The picture is ready. Its seed is ${prediction.seed}.`);
  }

  keep(prediction, i, seconds) {
    const image = (prediction.images ?? [prediction.image])[i];
    const { num_images_per_prompt: _, ...parameters } = this.body.parameters ?? {};
    this.body = { prompt: this.body.prompt, parameters: { ...parameters, seed: image.seed } };
    const bytes = Uint8Array.from(atob(image.b64), (character) => character.charCodeAt(0));
    const address = URL.createObjectURL(new Blob([bytes], { type: mediaType(image) }));
    this.picture(address, "");
    this.part(".frame").style.aspectRatio = `${prediction.width} / ${prediction.height}`;
    this.part(".frame").href = this.part(".download").href = address;
    this.part(".frame").target = "_blank";
    this.part(".download").download = `${model}-${image.seed}.${extension(image.format.toLowerCase())}`;
    this.part("pre").textContent = curl(this.body);
    this.warn(prediction, i);
    this.show("done", facts(prediction, image.seed, seconds));
  }

  warn({ dropped_tokens: dropped, safety_flagged: flagged }, i) {
    const cautions = [];
    if (dropped) cautions.push(`The prompt is ${dropped} ${dropped === 1 ? "token" : "tokens"} longer than the model reads.`);
    if (flagged?.[i]) cautions.push("The model's safety check has flagged this picture.");
    this.part(".caution").textContent = cautions.join(" ");
    this.part(".caution").hidden = !cautions.length;
  }

  picture(address, before) {
    this.image.src = address;
    this.image.alt = before + this.body.prompt;
    this.image.hidden = false;
  }

  show(state, told) {
    this.told = told;
    this.part(".told").textContent = told;
    if (this.element.dataset.state === state) return;
    const focused = document.activeElement;
    this.element.dataset.state = state;
    this.bar.hidden = !["queued", "running", "full", "asleep"].includes(state);
    if (state !== "running") this.bar.removeAttribute("value");
    for (const part of this.element.querySelectorAll("[data-in]")) part.hidden = !part.dataset.in.split(" ").includes(state);
    // What had the focus may be hidden now; a keyboard would start again at the top of the page.
    if (this.element.contains(focused) && focused.hidden) this.part(".actions > :not([hidden])").focus();
  }

  remove() {
    const next = this.element.nextElementSibling ?? this.element.previousElementSibling;
    URL.revokeObjectURL(this.image.src);
    this.element.remove();
    (next?.querySelector(".actions > :not([hidden])") ?? $("prompt")).focus();
  }
}

const mediaType = (image) => `image/${image.format.toLowerCase()}`;
const size = (name) => $(`parameter-${name}`)?.valueAsNumber;

const unbroken = (text) => text.replaceAll(" ", "\u00a0");

function facts(made, seed, seconds) {
  return [
    `seed ${seed}`,
    `${made.width} × ${made.height}`,
    `${made.num_inference_steps} steps`,
    made.guidance_scale !== undefined && `guidance ${made.guidance_scale}`,
    made.scheduler,
    `${seconds.toFixed(1)} s`,
  ]
    .filter(Boolean)
    .map(unbroken)
    .join(" · ");
}

// ---------------------------------------------------------------- what is told

let spoken = -Infinity;

/** To a screen reader; not at all when something was said less than `quiet` milliseconds ago. */
function say(text, quiet = 0) {
  if (performance.now() - spoken < quiet) return;
  spoken = performance.now();
  $("news").textContent = text;
}

function showReadiness(state, text) {
  $("readiness").dataset.state = state;
  $("readiness").textContent = text;
}

/** navigator.clipboard exists on https and on localhost only; a cluster's own address is often neither. */
async function copy(source, button) {
  getSelection().selectAllChildren(source);
  const done = navigator.clipboard
    ? await navigator.clipboard.writeText(source.textContent).then(() => true, () => false)
    : document.execCommand("copy");
  button.textContent = done ? "Copied" : "Selected";
  say(done ? "Copied." : "The command is selected: copy it with the keyboard.");
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

// ---------------------------------------------------------------- the page

async function open() {
  const { models } = await patiently("v1/models");
  model = models[0];
  $("name").textContent = model;
  document.title = `${model} · text to image`;
  $("start").disabled = false;
  $("curl").hidden = false;
  $("curl").open = roomy.matches;
  showCommand();
  await untilReady();
  build(await patiently(`v1/models/${model}/schema`));
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
$("form").addEventListener("input", showCommand);
// A wrong value in a closed part of the form could not be shown.
$("parameters").addEventListener("invalid", () => ($("parameters").open = true), true);
$("more").addEventListener("invalid", () => ($("more").open = true), true);
$("defaults").addEventListener("click", () => fill({}));
$("copy").addEventListener("click", (event) => copy($("command"), event.target));
document.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !$("start").disabled) start();
  if (event.key === "Escape") running.at(-1)?.control.abort();
});

open();
