"use strict";
// What the agent tells of itself, drawn anew with every status. All text is set as text, never as markup.

const OLD_AFTER_MS = 3000; // as `baton status` calls it stale
const KEEP_EVENTS = 300;
const KEEP_RATES = 120;
const MARKS = { good: "●", warn: "▲", bad: "✖", idle: "○" };
const PORT = { good: "good", held: "warn", degraded: "warn", silent: "bad", down: "bad" };
const NODE = { up: "good", draining: "warn", dead: "bad", unknown: "idle" };
const SERVER = { serving: "good", starting: "warn", stopping: "warn", stopped: "idle", failed: "bad" };
const BAD_EVENTS = new Set(["stranded", "effect_failed", "resources_failed", "lease_over", "store_lost", "node_dead", "verdict",
  "address_conflict", "foreign_claim", "address_deleted", "steering_deleted", "target_silent", "fence_failed", "deposed", "storage_lost_everywhere"]);
const FAILOVERS = new Set(["failover", "failover_done", "taken", "leaving"]);

const $ = (id) => document.getElementById(id);

/** An element with a class, children and attributes. */
function make(tag, kind, children = [], attributes = {}) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  element.append(...[].concat(children).filter((c) => c !== null && c !== undefined));
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** A state as a sign, a colour and a word: none of them alone. */
const mark = (kind, word) => make("span", `mark ${kind}`, `${MARKS[kind]} ${word}`);

const percent = (share) => `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`;

function bytes(rate) {
  const units = ["B/s", "kB/s", "MB/s", "GB/s"];
  let unit = 0;
  while (rate >= 1000 && unit < units.length - 1) { rate /= 1000; unit += 1; }
  return `${rate < 10 && unit ? rate.toFixed(1) : Math.round(rate)} ${units[unit]}`;
}

function seconds(value) {
  if (value < 1e-3) return `${Math.round(value * 1e6)} µs`;
  if (value < 1) return `${(value * 1e3).toFixed(value < 0.1 ? 1 : 0)} ms`;
  return `${value.toFixed(2)} s`;
}

function bar(share) {
  const filled = make("i");
  filled.style.width = `${Math.min(100, Math.max(0, share * 100))}%`;
  return make("div", share > 0.8 ? "bar high" : "bar", filled, { role: "img", "aria-label": `load ${percent(share)}` });
}

const load = (share) => make("div", "load", [bar(share), make("span", "", percent(share))]);

const rates = new Map();

function remember(status) {
  for (const server of status.virtual_servers) {
    const list = rates.get(server.name) ?? [];
    list.push(server.rate);
    rates.set(server.name, list.slice(-KEEP_RATES));
  }
}

function chart(name) {
  const list = rates.get(name) ?? [];
  const most = Math.max(1, ...list);
  const points = list.map((rate, i) => `${((i / Math.max(1, list.length - 1)) * 100).toFixed(1)},${(29 - (rate / most) * 27).toFixed(1)}`);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 100 30");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "chart");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `traffic of ${name}, at most ${bytes(most)}`);
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "M0,29L100,29");
  svg.append(path);
  return svg;
}

// ---- what needs attention --------------------------------------------------------------------------------------------

function problems(status) {
  const found = [];
  const add = (kind, what, then) => found.push({ kind, what, then });
  if (status.age_ms >= OLD_AFTER_MS) add("bad", "The agent does not answer itself.", `Its fast thread has been silent for ${seconds(status.age_ms / 1000)}: what is shown is old. See journalctl -u baton.`);
  if (!status.quorum) add("bad", "No quorum.", "No majority of the cluster is connected to this node: it serves nothing until one is. Check its ports and the other nodes.");
  if (!status.store) add("bad", "The store does not answer.", "What is served stays served; nothing new is taken. Check etcd.");
  for (const node of status.nodes) {
    if (node.state === "dead") add("bad", `${node.name} is dead.`, "A majority has not heard it. What it served is taken over.");
    if (node.state === "unknown") add("warn", `${node.name} is not heard.`, "This node does not know how it is.");
  }
  for (const port of status.ports) {
    if (PORT[port.state] === "good") continue;
    const why = port.reason ? `: ${port.reason.replaceAll("_", " ")}` : "";
    add(PORT[port.state], `Port ${port.interface} of ${status.node} is ${port.state}${why}.`, `Segment ${port.segment}. ${port.addresses ? "" : "Its addresses are on other ports."}`);
  }
  for (const server of status.virtual_servers) {
    if (SERVER[server.state] === "good") continue;
    add(SERVER[server.state] ?? "bad", `${server.name} is ${server.state}.`, server.why ?? (server.owner ? `Its node is ${server.owner}.` : "No node has it."));
  }
  for (const unit of status.storage ?? []) {
    const state = typeof unit.state === "string" ? unit.state : Object.keys(unit.state)[0];
    if (state !== "good") add("bad", `Storage unit ${unit.unit ?? unit.name} is ${state} on ${status.node}.`, "");
  }
  for (const conflict of status.conflicts) add("bad", `${conflict.address} is claimed by somebody else.`, `On ${conflict.interface}${conflict.mac ? `, host ${conflict.mac}` : ""}. Remove it there.`);
  for (const move of status.advice) add("warn", `Advice: move ${move.server} from ${move.from} to ${move.to}.`, "Balance only advises; see the plan below.");
  return found;
}

const item = ({ kind, what, then }) => make("li", kind, [make("strong", "", `${MARKS[kind] ?? MARKS.warn} ${what}`), then]);

// ---- nodes -------------------------------------------------------------------------------------------------------------

function chip(server, address) {
  const kind = SERVER[server.state] ?? "bad";
  const word = server.state === "serving" ? "" : ` ${server.state}`;
  return make("span", `chip ${kind}`, [server.name, make("small", "", `${word}${address ? ` ${address}` : ""}`)]);
}

function portRow(name, segment, kind, word, chips) {
  const line = make("span", "", [make("span", "", [make("b", "", name), ` ${segment}`]), mark(kind, word)]);
  return make("li", "port", [line, chips.length ? make("div", "chips", chips) : null]);
}

function nodeCard(status, node) {
  const own = node.name === status.node;
  const kind = NODE[node.state] ?? "idle";
  const tags = [own && "this node", node.name === status.master && "master", node.witness && "witness"].filter(Boolean);
  const head = make("div", "", [make("h3", "", node.name), ...tags.map((t) => make("span", "tag", t)), mark(kind, node.state)]);
  const has = status.virtual_servers.filter((s) => s.owner === node.name);
  const rows = [];
  const placed = new Set();
  const ports = own ? status.ports : (node.ports ?? []);
  for (const port of ports) {
    const chips = [];
    if (own) {
      for (const server of has) {
        for (const a of server.addresses.filter((a) => a.port === port.interface)) { chips.push(chip(server, a.address)); placed.add(server.name); }
      }
    }
    const [portKind, word] = own ? [PORT[port.state], port.state] : node.state === "dead" ? ["idle", "not heard"] : port.usable ? ["good", "usable"] : ["bad", "not usable"];
    rows.push(portRow(port.interface, port.segment, portKind, word, chips));
  }
  const rest = has.filter((s) => !placed.has(s.name));
  if (rest.length) rows.push(make("li", "port", make("div", "chips", rest.map((s) => chip(s, s.addresses.map((a) => a.address).join(" "))))));
  if (!has.length && !node.witness) rows.push(make("li", "port hint", "serves nothing"));
  return make("article", `node ${kind}`, [head, node.witness || node.state === "dead" ? null : load(node.load), make("ul", "", rows)], { "aria-label": `node ${node.name}, ${node.state}` });
}

function serverRow(server) {
  const cell = (children, name) => make("td", "", children, name ? { "data-name": name } : {});
  const where = (a) => make("div", "", `${a.address}${a.port ? ` on ${a.port}` : ""}${a.via ? ` by way of ${a.via}` : ""}`);
  return make("tr", "", [
    cell(mark(SERVER[server.state] ?? "bad", server.state)), cell(make("b", "", server.name)), cell(server.owner ?? "nobody", "node"),
    cell(server.addresses.map(where), "addresses"), cell(load(server.load), "load"), cell([chart(server.name), bytes(server.rate)], "traffic"),
  ]);
}

function leaseAndPaths(status) {
  const facts = [
    ["Quorum", status.quorum ? "yes" : "no"], ["Lease", status.lease_ms === null ? "endless" : `${status.lease_ms} ms left`],
    ["Master", status.master ?? "none"], ["Store", status.store ? "answers" : "does not answer"], ["Incarnation", String(status.incarnation)],
    ...status.segments.map((s) => [`Segment ${s.name}`, String(s.finding).replaceAll("_", " ")]),
  ];
  $("lease").replaceChildren(...facts.map(([what, is]) => make("div", "", [make("dt", "", what), make("dd", "", is)])));
  const heard = (is) => (is === null ? mark("idle", "not known yet") : is ? mark("good", "yes") : mark("bad", "no"));
  const rows = status.paths.map((p) => [p.segment, `${p.from} → ${p.to}`, heard(p.heard), p.loss === null ? "" : percent(p.loss), p.rtt_us === null ? "" : `${p.rtt_us.toFixed(0)} µs`]);
  rows.push(...status.targets.map((t) => [t.segment, `${t.port} → ${t.target}`, heard(t.answers), "", ""]));
  $("paths").querySelector("tbody").replaceChildren(...rows.map((row) => make("tr", "", row.map((c) => make("td", "", c)))));
}

// ---- events ------------------------------------------------------------------------------------------------------------

const events = [];
const known = new Set();

function stages(event) {
  const total = Math.max(1e-9, event.intervals.at(-1).to);
  const parts = event.intervals.map(({ stage, from, to }, i) => ({ name: stage, after: to, width: ((to - from) / total) * 100, colour: `s${i % 7}` }));
  const pieces = parts.map((p) => { const piece = make("i", p.colour, [], { title: `${p.name}: ${seconds(p.after)}` }); piece.style.flexBasis = `${p.width}%`; return piece; });
  const legend = parts.map((p) => make("li", "", [make("i", p.colour), `${p.name} after ${seconds(p.after)}`]));
  return [make("div", "stages", pieces, { "aria-hidden": "true" }), make("ul", "legend", legend)];
}

function eventKind(event) {
  if (BAD_EVENTS.has(event.event) || (event.event === "port" && PORT[event.to] === "bad")) return "bad";
  if (event.event === "port" && PORT[event.to] === "warn") return "warn";
  if (event.event === "failover" || event.event === "leaving" || event.event === "taken") return "warn";
  return event.event === "failover_done" || event.event === "serving" ? "good" : "";
}

function eventRow(event) {
  const time = make("time", "", event.time.slice(0, 10) === new Date().toISOString().slice(0, 10) ? event.time.slice(11, 23) : event.time.slice(0, 23).replace("T", " "), { datetime: event.time });
  const kind = eventKind(event);
  if (event.event === "failover_done" && event.intervals) {
    const last = event.intervals.at(-1).to;
    const what = { port: "port failover", takeover: "takeover", move: "move" }[event.kind] ?? event.kind;
    const title = `${what} done after ${seconds(last)}: ${(event.reason ?? "").replaceAll("_", " ")}, ${event.addresses} address${event.addresses === 1 ? "" : "es"}`;
    return make("li", kind, make("details", "", [make("summary", "", [time, title]), ...stages(event)], event === newestDone() ? { open: "" } : {}));
  }
  const running = event.event === "failover" && event.failover && !events.some((e) => e.event === "failover_done" && e.failover === event.failover && e.time >= event.time);
  return make("li", kind, [time, event.sentence, running ? make("span", "mark warn", " ▲ running") : null]);
}

const newestDone = () => events.findLast((e) => e.event === "failover_done");

function drawEvents() {
  const only = $("only").value;
  const open = new Set([...$("events").querySelectorAll("details[open] time")].map((t) => t.dateTime));
  const shown = events.filter((e) => (only === "failovers" ? FAILOVERS.has(e.event) : only === "bad" ? eventKind(e) === "bad" : true));
  const rows = shown.slice().reverse().map(eventRow);
  for (const row of rows) {
    const details = row.querySelector("details");
    if (details && open.has(details.querySelector("time").dateTime)) details.open = true;
  }
  $("events").replaceChildren(...rows);
  $("no-events").hidden = rows.length > 0;
}

let drawing = false;

function told(event) {
  const key = `${event.time} ${event.sentence}`;
  if (known.has(key)) return;
  known.add(key);
  events.push(event);
  while (events.length > KEEP_EVENTS) { const gone = events.shift(); known.delete(`${gone.time} ${gone.sentence}`); }
  if (drawing) return;
  drawing = true;
  setTimeout(() => { drawing = false; drawEvents(); }, 50);
}

// ---- the whole -----------------------------------------------------------------------------------------------------------

let last = null;
let lastAt = null;
let connected = false;

function draw(status) {
  $("seen-by").textContent = `as ${status.node} sees it`;
  const up = status.nodes.filter((n) => n.state === "up").length;
  const serving = status.virtual_servers.filter((s) => s.state === "serving").length;
  $("summary").textContent = `${up} of ${status.nodes.length} nodes up, ${serving} of ${status.virtual_servers.length} virtual servers serving`;
  $("problems").replaceChildren(...problems(status).map(item));
  $("nodes").replaceChildren(...status.nodes.map((node) => nodeCard(status, node)));
  $("servers").querySelector("tbody").replaceChildren(...status.virtual_servers.map(serverRow));
  $("version").textContent = `version ${status.version}`;
  leaseAndPaths(status);
  offerNames(status);
  document.title = `Baton: ${$("summary").textContent}`;
}

function freshness() {
  const silent = lastAt === null ? null : Date.now() - lastAt;
  const old = last && (silent >= OLD_AFTER_MS || last.age_ms >= OLD_AFTER_MS);
  const [state, words] = old
    ? ["old", connected ? `OLD DATA: ${seconds(Math.max(silent, last.age_ms) / 1000)}` : `OLD DATA: no connection for ${Math.round(silent / 1000)} s`]
    : connected && last ? ["live", "live"] : ["wait", "connecting"];
  $("freshness").dataset.state = state;
  $("freshness").textContent = words;
  document.body.classList.toggle("old", Boolean(old));
}

function listen() {
  const source = new EventSource("live");
  source.onopen = () => { connected = true; freshness(); };
  source.onerror = () => { connected = false; freshness(); };
  source.addEventListener("status", (message) => {
    last = JSON.parse(message.data);
    lastAt = Date.now();
    connected = true;
    remember(last);
    draw(last);
    freshness();
  });
  source.addEventListener("told", (message) => told(JSON.parse(message.data)));
  source.addEventListener("missed", (message) => told({ time: new Date().toISOString(), event: "missed", sentence: `${message.data} events came too fast for this page; see baton events` }));
  return source;
}

async function showPlan() {
  const shown = $("plan");
  shown.replaceChildren("computing…");
  try {
    const answer = await fetch("plan.json", { cache: "no-store" });
    if (!answer.ok) throw new Error((await answer.text()) || answer.statusText);
    const plan = await answer.json();
    const rows = plan.moves.map((m) => make("tr", "", [m.virtual_server, `${m.from} → ${m.to}`, `${percent(m.highest_load.before)} → ${percent(m.highest_load.after)}`, m.why].map((c) => make("td", "", c))));
    const head = make("thead", "", make("tr", "", ["Virtual server", "Move", "Highest load", "Why"].map((c) => make("th", "", c, { scope: "col" }))));
    shown.replaceChildren(rows.length ? make("div", "wide", make("table", "", [head, make("tbody", "", rows)])) : `Nothing to move: the highest load is ${percent(plan.highest_load)}, at best it could be ${percent(plan.lower_bound)}.`,
      ...plan.unplaced.map((u) => make("p", "mark bad", `${MARKS.bad} ${u.reason}`)));
  } catch (error) {
    shown.replaceChildren(`No plan: ${error.message}`);
  }
}

// ---- acting ------------------------------------------------------------------------------------------------------------

let token = null; // here alone, and gone with the page
let certified = false; // the browser shows a certificate that is as good as a token

function answered(kind, words) {
  $("done").className = kind;
  $("done").textContent = words;
}

async function ask(action) {
  const headers = { "Content-Type": "application/json" };
  if (!certified) headers.Authorization = `Bearer ${token}`;
  // Without credentials a browser shows no certificate either.
  const credentials = certified ? "same-origin" : "omit";
  const answer = await fetch("action", { method: "POST", headers, body: JSON.stringify(action), cache: "no-store", credentials });
  const words = await answer.text();
  if (!answer.ok) throw new Error(words || answer.statusText);
  return words;
}

function lock(words) {
  token = null;
  $("token").value = "";
  $("do").hidden = true;
  $("unlock").hidden = false;
  answered("", words);
}

/** Keeps what is chosen while the names change. */
function offer(select, names) {
  if ([...select.options].map((o) => o.value).join() === names.join()) return;
  const chosen = select.value;
  select.replaceChildren(...names.map((name) => make("option", "", name)));
  if (names.includes(chosen)) select.value = chosen;
}

function offerNames(status) {
  offer($("server"), status.virtual_servers.map((s) => s.name));
  offer($("node"), status.nodes.filter((n) => $("what").value !== "move" || !n.witness).map((n) => n.name));
}

function whatChanged() {
  $("which").hidden = $("what").value !== "move";
  $("seen").hidden = $("what").value !== "confirm_off";
  $("off").checked = false;
  if (last) offerNames(last);
}

async function unlock(submitted) {
  submitted.preventDefault();
  token = $("token").value.trim();
  try {
    await ask({ check: {} });
    $("token").value = "";
    $("unlock").hidden = true;
    $("do").hidden = false;
    whatChanged();
    answered("good", "Unlocked.");
    $("what").focus();
  } catch (error) {
    lock("");
    answered("bad", `Not unlocked: ${error.message}.`);
  }
}

async function act(submitted) {
  submitted.preventDefault();
  const node = $("node").value;
  const action = {
    move: { move: { server: $("server").value, to: node } }, drain: { drain: { node } }, resume: { resume: { node } },
    confirm_off: { confirm_off: { node, it_is_off: $("off").checked } },
  }[$("what").value];
  const button = $("do").querySelector("button");
  button.disabled = true;
  answered("", "Under way…");
  try {
    answered("good", `${MARKS.good} ${await ask(action)}`);
  } catch (error) {
    answered("bad", `${MARKS.bad} ${error.message}`);
  } finally {
    button.disabled = false;
    $("off").checked = false;
  }
}

async function mayAct() {
  try {
    const answer = await fetch("may.json", { cache: "no-store" });
    const may = answer.ok ? await answer.json() : {};
    $("act").hidden = !may.actions;
    certified = Boolean(may.certificate);
    if (certified) {
      $("unlock").hidden = true;
      $("do").hidden = false;
      $("lock").hidden = true;
      whatChanged();
    }
  } catch {
    $("act").hidden = true;
  }
}

$("unlock").addEventListener("submit", unlock);
$("do").addEventListener("submit", act);
$("what").addEventListener("change", whatChanged);
$("lock").addEventListener("click", () => lock("Locked."));
mayAct();

$("only").addEventListener("change", drawEvents);
$("ask-plan").addEventListener("click", showPlan);
setInterval(freshness, 500);
listen();
