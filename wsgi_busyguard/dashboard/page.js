"use strict";
// The server writes every part; what has changed is put in its place. A page that has gone stale
// says so: an old "free" is worse than none.
const shown = {};
const silence = document.getElementById("silence");
let heard = Date.now();
let source;

function connect() {
  source = new EventSource("?watch");
  source.onmessage = (event) => {
    const news = JSON.parse(event.data);
    heard = Date.now();
    silence.hidden = true;
    document.body.classList.remove("stale");
    document.title = news.title;
    for (const [id, html] of Object.entries(news.parts)) {
      if (shown[id] !== html) {
        shown[id] = html;
        document.getElementById(id).innerHTML = html;
      }
    }
  };
}

setInterval(() => {
  const seconds = Math.round((Date.now() - heard) / 1000);
  if (seconds < 4) return;
  silence.textContent = `No answer for ${seconds} s. What is below is as old.`;
  silence.hidden = false;
  document.body.classList.add("stale");
  document.title = document.title.replace(/^[^\u00b7]*/, "no answer ");
  // A browser tries again by itself, but not after an answer that it did not like.
  if (source.readyState === EventSource.CLOSED || seconds % 10 === 0) {
    source.close();
    connect();
  }
}, 1000);
connect();
