"""How the page looks: one column of calm boxes, two colours that mean something, the fonts of the system."""

ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect x="1" y="3" width="14" height="4" rx="1" '
    'fill="#1f6f78"/><rect x="1" y="9" width="8" height="4" rx="1" fill="#b8b4aa"/></svg>'
)
CSS = """
.gradio-container {
  --lle-mixed: #1f6f78; --lle-base: #b8b4aa; --lle-was: #c4793a; --lle-ink: #23282b; --lle-soft: #62696d;
  --lle-line: #e3e0d9; --lle-paper: #ffffff; --lle-tint: #eef4f4; --lle-bad: #a33a2c;
  padding: 0 !important; overflow-x: clip;
}
.dark .gradio-container, .gradio-container.dark {
  --lle-mixed: #5db3bb; --lle-base: #6d6f70; --lle-was: #e0a06a; --lle-ink: #e6e6e3; --lle-soft: #a2a8aa;
  --lle-line: #3a3f41; --lle-paper: #202425; --lle-tint: #24312f; --lle-bad: #ec9486;
}
.gradio-container .app { padding: 24px 16px 56px !important; }
.gradio-container main { width: 100% !important; max-width: 800px !important; margin: 0 auto !important; }
.gradio-container .block.hide-container { padding: 0 !important; }
.gradio-container .block:has(> .html-container > .prose:empty) { display: none; }
.gradio-container .html-container { padding: 0 !important; }
.gradio-container .lle-buttons { flex-wrap: wrap; gap: 10px; }
.gradio-container .lle-buttons button { flex: 0 1 auto; min-width: 150px; font-weight: 500; }
.gradio-container footer { display: none !important; }
.lle-head h1 { font-size: 22px; font-weight: 650; margin: 0 0 4px; color: var(--lle-ink); letter-spacing: -0.01em; }
.lle-head p { margin: 0; color: var(--lle-soft); max-width: 64ch; }
.lle-result { display: grid; gap: 22px; color: var(--lle-ink); }
.gradio-container h3 { font-size: 14px; font-weight: 600; margin: 0 0 8px; color: var(--lle-ink); }
.gradio-container h3 q { font-weight: 650; }
.lle-keys { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 10px; font-size: 13px; color: var(--lle-soft); }
.lle-key::before { content: ""; display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 6px; }
.lle-key.lle-mixed::before { background: var(--lle-mixed); }
.lle-key.lle-base::before { background: var(--lle-base); }
.lle-key.lle-was::before { background: var(--lle-was); width: 3px; height: 12px; vertical-align: -1px; }
ul.lle-bars, ul.lle-held, ol.lle-moved { list-style: none; margin: 0; padding: 0; }
.lle-bars li { display: grid; grid-template-columns: minmax(90px, 170px) 1fr 132px; gap: 12px; align-items: center; padding: 5px 0; }
.lle-name { overflow-wrap: anywhere; font-size: 14px; text-align: right; }
.lle-sign { color: var(--lle-soft); }
.lle-tracks { display: grid; gap: 3px; }
.lle-track { position: relative; display: block; height: 12px; background: color-mix(in srgb, var(--lle-line) 45%, transparent); border-radius: 2px; }
.lle-track.lle-thin { height: 5px; }
.lle-track b { display: block; height: 100%; border-radius: 2px; transition: width 0.4s ease; }
b.lle-mixed { background: var(--lle-mixed); }
b.lle-base { background: var(--lle-base); }
.lle-mark { position: absolute; top: -3px; bottom: -3px; width: 3px; margin-left: -1px; background: var(--lle-was); border-radius: 1px; }
.lle-value { font-size: 14px; font-variant-numeric: tabular-nums; line-height: 1.35; white-space: nowrap; }
.lle-value small { color: var(--lle-was); font-size: 12px; margin-left: 4px; }
.lle-value em { display: block; font-style: normal; font-size: 12px; color: var(--lle-soft); }
.lle-split { display: flex; height: 10px; border-radius: 3px; overflow: hidden; gap: 2px; }
.lle-shares p, .lle-empty, .lle-count { margin: 6px 0 0; font-size: 13px; color: var(--lle-soft); }
.lle-moved li { display: grid; grid-template-columns: 76px 1fr; gap: 14px; padding: 10px 0; border-top: 1px solid var(--lle-line); }
.lle-moved li:first-child { border-top: 0; padding-top: 2px; }
.lle-amount { font-variant-numeric: tabular-nums; font-weight: 600; text-align: right; font-size: 15px; }
.lle-amount small { display: block; font-weight: 400; font-size: 12px; color: var(--lle-soft); line-height: 1.3; }
.lle-more { color: var(--lle-mixed); }
.lle-less { color: var(--lle-was); }
.lle-entry p, .lle-held p { display: block; margin: 0 0 2px; overflow-wrap: anywhere; white-space: pre-wrap; font-size: 14px; line-height: 1.5; }
.gradio-container .prose mark { background: var(--lle-tint); color: var(--lle-mixed) !important; font-weight: 600; padding: 1px 4px; border-radius: 3px; }
.gradio-container .prose cite { display: block; font-style: normal; font-size: 12px; color: var(--lle-soft) !important; margin-top: 2px; overflow-wrap: anywhere; }
.gradio-container .prose mark.lle-token { padding: 1px 0; }
.lle-held li { padding: 10px 0; border-top: 1px solid var(--lle-line); color: var(--lle-ink); }
.lle-count { margin-bottom: 8px; }
.lle-cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; }
.gradio-container .lle-card { margin: 0; padding: 10px 14px 12px; border: 1px solid var(--lle-line); border-top: 3px solid var(--lle-base); border-radius: 4px; background: var(--lle-paper); }
.gradio-container .lle-card.lle-mixed { border-top-color: var(--lle-mixed); }
.gradio-container .lle-card.lle-was { border-top-color: var(--lle-was); }
.lle-card figcaption { font-size: 12px; color: var(--lle-soft); margin-bottom: 4px; }
.gradio-container .lle-card blockquote { margin: 0 !important; padding: 0 !important; border: 0 !important; font-style: normal; font-size: 15px; line-height: 1.5; white-space: pre-wrap; overflow-wrap: anywhere; color: var(--lle-ink); }
.lle-note { margin: 0; padding: 9px 12px; border-radius: 4px; font-size: 14px; border-left: 3px solid var(--lle-mixed); background: var(--lle-tint); color: var(--lle-ink); }
.lle-note.lle-error { border-left-color: var(--lle-bad); background: color-mix(in srgb, var(--lle-bad) 9%, transparent); }
.gradio-container .lle-curve { margin: 0 0 14px; color: var(--lle-ink); }
.lle-curve figcaption p { margin: -4px 0 8px; font-size: 13px; color: var(--lle-soft); }
.lle-curve svg { width: 100%; height: auto; display: block; font-family: inherit; }
.lle-curve svg.lle-narrow { display: none; }
.lle-curve line { stroke: var(--lle-line); stroke-width: 1; }
.lle-curve polyline { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
.lle-curve polyline.lle-mixed { stroke: var(--lle-mixed); }
.lle-curve polyline.lle-base { stroke: var(--lle-base); }
.lle-tick { font-size: 12px; fill: var(--lle-soft); }
.lle-right { text-anchor: end; }
.lle-end { font-size: 14px; font-weight: 650; }
.lle-end tspan { font-weight: 400; font-size: 12px; }
.lle-end.lle-mixed { fill: var(--lle-mixed); }
.lle-end.lle-base { fill: var(--lle-soft); }
.gradio-container button:focus-visible, .gradio-container textarea:focus-visible, .gradio-container input:focus-visible {
  outline: 2px solid var(--lle-mixed) !important; outline-offset: 2px;
}
@media (max-width: 560px) {
  .gradio-container .app { padding: 16px 14px 40px !important; }
  .lle-bars li { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 3px 10px; padding: 7px 0; }
  .lle-name { text-align: left; }
  .lle-tracks { flex: 0 0 100%; order: 3; }
  .lle-value { text-align: right; margin-left: auto; }
  .gradio-container .lle-buttons button { flex: 1 1 100%; }
  .lle-value em { display: inline; margin-left: 8px; }
  .lle-moved li { grid-template-columns: 58px 1fr; gap: 10px; }
  .lle-curve svg.lle-wide { display: none; }
  .lle-curve svg.lle-narrow { display: block; }
}
@media (prefers-reduced-motion: reduce) { .lle-track b { transition: none; } }
"""
