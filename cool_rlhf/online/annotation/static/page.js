// Keys for the page's buttons, and a comment that outlives a reload. Without this script the buttons work as they are.
"use strict";

const answer = document.getElementById("answer");
const comment = answer ? answer.elements.comment : null;
const keys = { ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", t: "tie", b: "both_bad", s: "skip" };
let sent = false;

function press(button) {
  if (button && !button.disabled && !sent) button.click();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target === comment) {
    if (event.key === "Escape") comment.blur();
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!(key in keys || key === "u" || key === "c")) return;
  event.preventDefault();
  if (event.repeat) return; // a key that is held down must not answer what comes next
  if (key === "u") press(document.querySelector("#undo button"));
  else if (!answer) return;
  else if (key === "c") comment.focus();
  else press(answer.querySelector(`button[value="${keys[key]}"]`));
});

for (const form of document.forms) {
  form.addEventListener("submit", (event) => {
    if (sent) event.preventDefault();
    sent = true;
  });
}

window.addEventListener("pageshow", () => { sent = false; }); // back from the page that came after

if (answer) {
  const draft = `comment ${answer.elements.item.value}`;
  comment.value = comment.value || sessionStorage.getItem(draft) || "";
  comment.addEventListener("input", () => sessionStorage.setItem(draft, comment.value));
}
