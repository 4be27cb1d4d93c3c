import { useState } from "react";

const DONE_MS = 1_500;

export function CopyButton({ text, label }: { text: string; label: string }) {
  const [done, setDone] = useState("");
  const copy = async () => {
    setDone((await copied(text)) ? "Copied" : "Not allowed");
    setTimeout(() => setDone(""), DONE_MS);
  };
  return (
    <button type="button" className="quiet" onClick={() => void copy()}>
      {done || label}
    </button>
  );
}

/** Plain HTTP from another machine has no clipboard interface; a selection does there. */
async function copied(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = document.createElement("textarea");
    field.value = text;
    field.className = "visually-hidden";
    document.body.append(field);
    field.select();
    const isDone = document.execCommand("copy");
    field.remove();
    return isDone;
  }
}
