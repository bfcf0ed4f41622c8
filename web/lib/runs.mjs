/** What runs tell, handed to the workflow that was run: it may stand in another tab than the one that is open. */

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { graphId } from "./graph.mjs";

const STEP = 100; // milliseconds
const TRIES = 20;

// By prompt: the tab it was queued from. A tab is its ChangeTracker, which ComfyUI keeps through renames, and not beyond
// its closing.
const tabs = new Map();
let queued = Promise.resolve(); // settled once the server has answered every prompt that was sent
let told = Promise.resolve(); // messages are handed on in the order in which they came
let missed = []; // {tab, tell}: what tabs wait for, in order

app.registerExtension({
  name: "LatentEncoder.Runs",

  setup() {
    // No message of a node's says its tab, and ComfyUI tells extensions nowhere which prompt it queued from which.
    const queuePrompt = api.queuePrompt;
    api.queuePrompt = function (...request) {
      const tab = openTab();
      const answer = queuePrompt.apply(this, request);
      const noted = answer.then(({ prompt_id }) => note(prompt_id, tab)).catch(() => {});
      queued = queued.then(() => noted);
      return answer;
    };
  },
});

/**
 * Call `tell` when the tab that a prompt was queued from is open: now, or when one comes back to it. Never, where that
 * tab was closed.
 * @param {string} promptId
 * @param {() => void} tell
 */
export function whenOpen(promptId, tell) {
  const handOn = async () => {
    const tab = await tabOfPrompt(promptId);
    if (!tab || isClosed(tab)) return;
    missed.push({ tab, tell });
    if (tab === openTab() && !isShown(tab)) void tellMissed();
    else tellDue(isShown);
  };
  told = told.then(handOn).catch(console.error);
}

/** Call `tell` when the graph that is open has been left, or is being built anew, and is there again. */
export function whenBack(tell) {
  missed.push({ tab: openTab(), tell });
}

/** Tell the tab that is being opened what it has missed. To be called once its graph is there. */
export async function tellMissed() {
  missed = missed.filter(({ tab }) => !isClosed(tab));
  for (let tries = 0; missed.length && tries < TRIES; tries++) {
    await later();
    tellDue(isShown);
  }
  tellDue(() => true);
}

/** Tell what the open tab waits for, if that test of it holds. */
function tellDue(test) {
  const due = missed.filter(({ tab }) => tab === openTab() && test(tab));
  missed = missed.filter((entry) => !due.includes(entry));
  for (const { tell } of due) tell();
}

/** Whether the graph is that of the open tab: ComfyUI says which tab is open only after it has changed the graph. */
function isShown(tab) {
  const id = tab.activeState?.id;
  return id == null || id === graphId();
}

function note(promptId, tab) {
  for (const [id, other] of tabs) if (isClosed(other)) tabs.delete(id);
  tabs.set(promptId, tab);
}

/** The tab of a prompt; of one from before the page was loaded again, the open tab, if it holds that workflow. */
async function tabOfPrompt(promptId) {
  await queued; // a node may be done before the answer to its prompt is there
  if (tabs.has(promptId)) return tabs.get(promptId);
  const id = await workflowOfPrompt(promptId);
  const tab = openTab();
  if (id != null && id === tab?.activeState?.id) note(promptId, tab);
  return tabs.get(promptId);
}

/** The id of the workflow that the server remembers of a prompt that runs or has run. */
async function workflowOfPrompt(promptId) {
  for (let tries = 0; tries < TRIES; tries++) {
    const { queue_running: running } = await ask("/queue");
    const ended = await ask(`/history/${promptId}`);
    const prompt = running.find(([, id]) => id === promptId) ?? ended[promptId]?.prompt;
    if (prompt) return prompt[3]?.extra_pnginfo?.workflow?.id ?? null;
    await later(); // the server tells of an end before it writes it down
  }
  return null;
}

async function ask(route) {
  return (await api.fetchApi(route)).json();
}

function openTab() {
  return app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
}

function isClosed(tab) {
  return !app.extensionManager.workflow.openWorkflows.some(({ changeTracker }) => changeTracker === tab);
}

function later() {
  return new Promise((done) => setTimeout(done, STEP));
}
