/* Keys for reviewing: in the list they act on the current row, on a verdict's page on its buttons.
   Without this script the list's actions and the page's buttons do the same. */
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const list = document.getElementById("review-keys");
  if (list) reviewList(list);
  else onKey((key) => chooseLabel(key) || press(key));
});

function press(key) {
  document.querySelector(`[data-key="${CSS.escape(key)}"]`)?.click();
}

/* The labels by their numbers, in the order they are listed in. */
function chooseLabel(key) {
  const label = document.querySelector("select#id_correct_label");
  const chosen = [...(label?.options ?? [])].filter((option) => option.value)[Number(key) - 1];
  if (chosen) label.value = chosen.value;
  return Boolean(chosen);
}

const CONTROLS = "a, button, summary, input, select, textarea, [contenteditable]";

/* No key that a control has a use for: of a list's checkboxes that is only Enter. */
function onKey(act) {
  document.addEventListener("keydown", (event) => {
    const control = event.target.closest(CONTROLS);
    const checkbox = control?.matches(".action-select") && event.key !== "Enter";
    if ((control && !checkbox) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (act(event.key) === true) event.preventDefault();
  });
}

function reviewList(keys) {
  const rows = [...document.querySelectorAll("#result_list tbody tr")].filter((row) => stateOf(row));
  const said = document.getElementById("review-said");
  const statuses = { a: "accepted", r: "rejected", u: "pending" };
  let current = -1;

  function go(to) {
    if (!rows.length) return;
    rows[current]?.classList.remove("current");
    current = Math.min(Math.max(to, 0), rows.length - 1);
    rows[current].classList.add("current");
    rows[current].tabIndex = -1;
    rows[current].focus();
  }

  async function review(row, status) {
    const state = stateOf(row);
    const seen = row.querySelector(`input[name="status_${state.dataset.pk}"]`);
    const answer = await fetch(keys.dataset.url.replace("/0/", `/${state.dataset.pk}/`), {
      method: "POST",
      headers: { "X-CSRFToken": document.querySelector("[name=csrfmiddlewaretoken]").value },
      body: new URLSearchParams({ status, revision: state.dataset.revision, seen_status: seen.value }),
    });
    const isJson = answer.headers.get("Content-Type")?.startsWith("application/json");
    const result = isJson ? await answer.json() : { detail: `The server answered ${answer.status}.` };
    if (!answer.ok) throw new Error(result.detail);
    state.className = `status ${result.status}`;
    state.textContent = result.status;
    seen.value = result.status;
    row.querySelector(".reviewed-by").textContent = result.reviewed_by;
    for (const [name, count] of Object.entries(result.counts)) {
      document.querySelector(`[data-count="${name}"]`).textContent = count;
    }
    if (location.search) forgetResultCounts();
    return `Row ${state.dataset.pk} ${result.status}`;
  }

  onKey((key) => {
    if (key === "j" || key === "ArrowDown") go(current + 1);
    else if (key === "k" || key === "ArrowUp") go(current - 1);
    else if (current < 0) return false;
    else if (key === "x") rows[current].querySelector(".action-select").click();
    else if (key === "Enter") rows[current].querySelector("a").click();
    else if (key in statuses) {
      const row = rows[current];
      review(row, statuses[key]).then(
        (done) => { said.textContent = done; if (rows[current] === row) go(current + 1); },
        (error) => { said.textContent = error.message; },
      );
    } else return false;
    return true;
  });
}

/* A reviewed row may no longer be what was searched for. */
function forgetResultCounts() {
  document.querySelector("#changelist-search .quiet")?.remove();
  for (const node of [...document.querySelector(".paginator").childNodes]) {
    if (node.nodeType === Node.TEXT_NODE && node.data.trim()) node.remove();
  }
}

function stateOf(row) {
  return row.querySelector(".status[data-pk]");
}
