/** What runs tell, handed to the workflow that was run: it may stand in another tab than the one that is open. */

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { graphId } from "./graph.mjs";

const STEP = 100; // milliseconds
const TRIES = 20;

let missed = []; // {tab, tell}: what tabs in the background wait for

/**
 * Call `tell` when that tab is open: now, or when one comes back to it.
 * @param {object|null} tab one of ComfyUI's open workflows; null: the one that is open now.
 * @param {() => void} tell
 */
export function whenOpen(tab, tell) {
  if (!tab || isOpen(tab)) tell();
  else missed.push({ tab, tell });
}

/** Tell the tab that is being opened what it has missed. To be called once its graph is there. */
export async function tellMissed() {
  // ComfyUI says which tab is open only after it has told us of the graph.
  for (let tries = 0; missed.length && tries < TRIES; tries++) {
    await later();
    const due = missed.filter(({ tab }) => isOpen(tab));
    missed = missed.filter((entry) => !due.includes(entry));
    for (const { tell } of due) tell();
  }
}

/** The tab that an `executed` message belongs to: ComfyUI keeps what a node put out with the tab that ran it. */
export function tabOfOutput({ node, output }) {
  const said = JSON.stringify(output);
  return tabs().find(({ changeTracker }) => JSON.stringify(changeTracker?.nodeOutputs?.[node]) === said) ?? null;
}

/** The tab that a finished prompt came from, by the workflow that the server remembers; null where it has none. */
export async function tabOfPrompt(promptId) {
  const id = await workflowOfPrompt(promptId);
  if (id == null || id === graphId()) return null;
  return tabs().find(({ changeTracker }) => changeTracker?.activeState?.id === id) ?? null;
}

async function workflowOfPrompt(promptId) {
  for (let tries = 0; tries < TRIES; tries++) {
    const answer = await api.fetchApi(`/history/${promptId}`);
    const entry = answer.ok ? (await answer.json())[promptId] : null;
    if (entry) return entry.prompt[3]?.extra_pnginfo?.workflow?.id ?? null;
    await later(); // the server tells of an end before it writes it down
  }
  return null;
}

function tabs() {
  return app.extensionManager?.workflow?.openWorkflows ?? [];
}

function isOpen(tab) {
  return tab.path === app.extensionManager.workflow.activeWorkflow?.path;
}

function later() {
  return new Promise((done) => setTimeout(done, STEP));
}
