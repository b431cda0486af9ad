/* Checks a file without leaving the page, so that it stays chosen for the import. Without this
   script the page is loaded again, and the file chosen once more. */
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const form = document.getElementById("import");
  const outcome = document.getElementById("outcome");
  const file = form.elements.file;

  const say = (text) => {
    outcome.replaceChildren(Object.assign(document.createElement("p"), { textContent: text }));
  };

  const tooLarge = () => {
    const { mostBytes, most } = file.dataset;
    if (!file.files.length || file.files[0].size <= Number(mostBytes)) return false;
    say(`The file is too large: at most ${most} are accepted.`);
    return true;
  };

  const check = async (button) => {
    const sent = new FormData(form);
    sent.append("step", button.value);
    button.disabled = true;
    say("Checking …");
    try {
      const answer = await fetch(window.location.href, { method: "POST", body: sent });
      if (answer.redirected) return window.location.assign(answer.url);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (!page.getElementById("import")) throw new Error(page.querySelector("h1")?.textContent);
      show(page);
    } catch (error) {
      say(`The file could not be checked. ${error.message ?? ""}`);
      button.disabled = false;
    }
  };

  /* What the page would show, with the form as it is. */
  const show = (page) => {
    page.querySelector(".choose-again")?.remove();
    const errors = page.querySelectorAll("#import .errorlist");
    outcome.replaceChildren(...errors, ...page.getElementById("outcome").childNodes);
    const steps = document.getElementById("steps");
    steps.replaceChildren(...page.getElementById("steps").childNodes);
    (steps.querySelector("[value=import]") ?? steps.querySelector("[value=check]")).focus();
    outcome.scrollIntoView({ block: "nearest" });
  };

  form.addEventListener("submit", (event) => {
    const step = event.submitter;
    if (tooLarge()) event.preventDefault();
    else if (step?.value === "check" && file.files.length) {
      event.preventDefault();
      check(step);
    }
  });
});
