/** What a model writes is not trusted: no scripts, no styles, no pictures from elsewhere. */

import DOMPurify from "dompurify";

const purifier = DOMPurify(window);

purifier.addHook("uponSanitizeElement", (node) => {
  if (!(node instanceof HTMLImageElement)) return;
  const link = document.createElement("a");
  link.textContent = `🖼 ${node.alt || "image"}`;
  link.href = node.getAttribute("src") ?? "";
  link.className = "remote-image";
  node.replaceWith(link);
});
purifier.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer nofollow");
});

export function sanitized(html: string): string {
  return purifier.sanitize(html, {
    USE_PROFILES: { html: true },
    FORBID_TAGS: ["style", "form", "input", "button", "textarea", "select", "iframe", "object", "video", "audio", "source", "picture"],
    FORBID_ATTR: ["style", "id", "name", "srcset"],
    ALLOW_DATA_ATTR: false,
  });
}
