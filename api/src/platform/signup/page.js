"use strict";
const $ = (id) => document.getElementById(id);
const say = (text) => { $("said").textContent = text; };
const token = new URLSearchParams(location.hash.slice(1)).get("token");
$(token ? "confirm" : "ask").hidden = false;

async function ask(path, body) {
  const answer = await fetch("/api/v1/signup" + path, body && {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  });
  const json = await answer.json().catch(() => ({}));
  return { status: answer.status, json };
}

function refusal({ json }) {
  return [json.title || "It did not work.", json.detail].filter(Boolean).join(" ");
}

let asked = 0, own = false;
$("slug").addEventListener("input", () => { own = true; });
$("name").addEventListener("input", async () => {
  const mine = ++asked;
  const name = $("name").value.trim();
  if (own || !name) return;
  await new Promise((done) => setTimeout(done, 250));
  if (mine !== asked) return;
  const found = await ask("/slugs?name=" + encodeURIComponent(name));
  if (mine === asked && !own && found.status === 200) $("slug").value = found.json.slugs[0] || "";
});

$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = $("ask").querySelector("button");
  button.disabled = true;
  say("One moment…");
  const body = { name: $("name").value.trim(), slug: $("slug").value.trim(), email: $("email").value.trim() };
  const answer = await ask("", body).catch(() => ({ json: {} }));
  button.disabled = false;
  if (answer.status !== 202) return say(refusal(answer));
  $("ask").hidden = true;
  say("A letter is on its way to " + body.email + ". Follow the link in it to go on.");
});

$("confirm").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = $("confirm").querySelector("button");
  button.disabled = true;
  const slug = $("another").value.trim();
  for (;;) {
    const answer = await ask("/confirm", slug ? { token, slug } : { token }).catch(() => ({ json: {} }));
    const { state, url } = answer.json;
    if (answer.status === 202) {
      say("It is being made…");
      await new Promise((done) => setTimeout(done, 1000));
      continue;
    }
    if (state === "ready") {
      $("confirm").hidden = true;
      return say("It is ready at " + url + ". A letter brings the link with which you choose your password.");
    }
    button.disabled = false;
    $("other").hidden = answer.json.code !== "slug_taken" && !slug;
    return say(refusal(answer));
  }
});
