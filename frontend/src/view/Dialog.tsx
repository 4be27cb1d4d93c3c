import { type ReactNode, useEffect, useId, useRef } from "react";

/** A modal dialog of the browser's own; Esc closes it and nothing else. */
export function Dialog({ title, kind = "", onClose, children }: { title: string; kind?: string; onClose: () => void; children: ReactNode }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const name = useId();
  useEffect(() => dialog.current?.showModal(), []);
  return (
    <dialog ref={dialog} className={`dialog ${kind}`} onClose={onClose} aria-labelledby={name} onKeyDown={(event) => event.key === "Escape" && event.stopPropagation()}>
      <h2 id={name}>{title}</h2>
      {children}
    </dialog>
  );
}
