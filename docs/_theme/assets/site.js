/* Copy buttons that fetch the file, and a quick reference that filters and sorts. Without this script
   every table is whole and every file has its link. */
"use strict"

const say = (element, text) => {
  const before = element.textContent
  element.textContent = text
  setTimeout(() => { element.textContent = before }, 1500)
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = false
  button.addEventListener("click", async () => {
    try {
      const answer = await fetch(button.dataset.copy)
      if (!answer.ok) throw new Error(answer.statusText)
      await navigator.clipboard.writeText(await answer.text())
      say(button, "Copied")
    } catch {
      say(button, "Copying failed: use the link")
    }
  })
}

/* The theme's button leaves out the newline at the end of a file: a copied block is exactly the file. */
document.addEventListener("click", (event) => {
  const code = event.target.closest?.('[data-md-type="copy"]')?.closest(".highlight, pre")?.querySelector("code")
  if (code) setTimeout(() => navigator.clipboard.writeText(code.textContent))
})

/* The search completes every word, so that an "a" stands for all words that begin with it. The little words of a
   question are left out, as the index leaves them out. A part in quotation marks is left as it is. */
const little = new Set(("a about after all am an and any are as at be because been but by can could did do does for from " +
  "had has have how i if in into is it its just me my of off on only or our own should since so some than that the " +
  "their them then there these they this to too us was we were what when where which while who why will with would " +
  "you your").split(" "))
const post = Worker.prototype.postMessage
Worker.prototype.postMessage = function (message, ...rest) {
  if (message?.type === 2 && !message.data.includes('"')) { // a query to the theme's search
    const words = message.data.split(/\s+/).filter((word) => !little.has(word.toLowerCase()))
    message = { ...message, data: words.join(" ") || message.data }
  }
  return post.call(this, message, ...rest)
}

/* The theme adds a navigation landmark to each block of code as it scrolls into view, all of them without a name. */
let blocks = 0
const name = () => {
  for (const bar of document.querySelectorAll(".md-code__nav:not([aria-label])")) {
    const file = bar.closest(".highlight")?.querySelector(".filename")?.textContent
    bar.setAttribute("aria-label", `Code block ${++blocks}${file ? `, ${file}` : ""}`)
  }
}
new MutationObserver(name).observe(document.body, { childList: true, subtree: true })
name()

for (const box of document.querySelectorAll(".pp-table")) {
  const body = box.querySelector("tbody")
  const rows = [...body.rows]
  sortable(box, body, rows)
  if (box.classList.contains("pp-reference")) filterable(box, rows)
}

function sortable(box, body, rows) {
  box.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button")
    button.type = "button"
    button.textContent = head.textContent
    button.setAttribute("aria-label", `${head.textContent}, sort`)
    head.replaceChildren(button)
    button.addEventListener("click", () => {
      const next = { ascending: "descending", descending: "none" }[head.ariaSort] ?? "ascending"
      for (const other of box.querySelectorAll("thead th")) other.removeAttribute("aria-sort")
      const order = [...rows]
      if (next !== "none") {
        head.setAttribute("aria-sort", next)
        const text = (row) => row.cells[column].textContent
        order.sort((a, b) => text(a).localeCompare(text(b)) * (next === "ascending" ? 1 : -1))
      }
      body.replaceChildren(...order)
    })
  })
}

function filterable(box, rows) {
  const panel = document.createElement("div")
  panel.className = "pp-filter"
  panel.innerHTML =
    '<label>Filter by pattern, need, error text or tag <input type="search" autocomplete="off" spellcheck="false"></label>' +
    '<div role="group" aria-label="Filter by tag"></div><p role="status" aria-live="polite"></p>'
  const [input, tags, status] = [panel.querySelector("input"), panel.querySelector("div"), panel.querySelector("p")]
  const haystack = new Map(rows.map((row) => [row, `${row.textContent} ${row.dataset.words}`.toLowerCase()]))
  let tag = ""
  const apply = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean)
    let shown = 0
    for (const row of rows) {
      const fits = words.every((word) => haystack.get(row).includes(word)) && (!tag || row.dataset.tags.split(" ").includes(tag))
      row.hidden = !fits
      shown += fits
    }
    status.textContent = shown === rows.length ? `${rows.length} patterns` : `${shown} of ${rows.length} patterns`
  }
  const counts = new Map()
  for (const row of rows) for (const name of row.dataset.tags.split(" ")) counts.set(name, (counts.get(name) ?? 0) + 1)
  const common = [...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0])).slice(0, 16)
  for (const [name] of common) {
    const button = document.createElement("button")
    button.type = "button"
    button.textContent = name
    button.setAttribute("aria-pressed", "false")
    button.addEventListener("click", () => {
      tag = tag === name ? "" : name
      for (const other of tags.children) other.setAttribute("aria-pressed", String(other.textContent === tag))
      apply()
    })
    tags.append(button)
  }
  input.addEventListener("input", apply)
  box.before(panel)
  apply()
}
