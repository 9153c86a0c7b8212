"use strict";
// A figure in a closed <details> has no width to draw itself in: opening one has its figures measure anew.
document.addEventListener("toggle", () => window.dispatchEvent(new Event("resize")), true);
