/** What a model writes is not trusted: no scripts, no styles, no names of ours, no pictures from elsewhere. */

import DOMPurify, { type Config } from "dompurify";

const CONFIG: Config = {
  USE_PROFILES: { html: true },
  FORBID_TAGS: ["style", "form", "button", "textarea", "select", "iframe", "object", "video", "audio", "source", "picture", "dialog", "map"],
  FORBID_ATTR: ["style", "id", "name", "class", "srcset", "role", "tabindex", "contenteditable", "popover", "usemap", "background"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
};
const INLINE_IMAGE = /^data:image\/(png|jpeg|gif|webp);/i;
const ADDRESS = /^https?:\/\//i;

const purifier = DOMPurify(window);

purifier.addHook("afterSanitizeAttributes", (node) => {
  if (node instanceof HTMLImageElement) replaceImage(node);
  else if (node instanceof HTMLInputElement) node.replaceWith(node.type === "checkbox" ? (node.checked ? "☑ " : "☐ ") : "");
  else if (node instanceof HTMLAnchorElement) secureLink(node);
  // What scrolls sideways must be reached by keyboard.
  else if (node instanceof HTMLTableElement || node instanceof HTMLPreElement) node.setAttribute("tabindex", "0");
});

/** A picture from elsewhere tells its owner that it was looked at: it becomes a link. */
function replaceImage(image: HTMLImageElement): void {
  const address = image.getAttribute("src") ?? "";
  if (INLINE_IMAGE.test(address)) {
    image.alt ||= "";
    return;
  }
  const words = `Image: ${image.alt || address || "without address"}`;
  if (!ADDRESS.test(address)) {
    image.replaceWith(words);
    return;
  }
  const link = image.ownerDocument.createElement("a");
  link.textContent = words;
  link.setAttribute("href", address);
  secureLink(link);
  link.className = "remote-image";
  image.replaceWith(link);
}

function secureLink(link: HTMLAnchorElement): void {
  if (!link.hasAttribute("href")) return;
  link.setAttribute("target", "_blank");
  link.setAttribute("rel", "noopener noreferrer nofollow");
}

export function sanitized(html: string): string {
  return purifier.sanitize(html, CONFIG);
}
