import { Dialog } from "./Dialog";

const KEYS = [
  ["Enter", "send"],
  ["Shift Enter", "new line"],
  ["Esc", "stop the run"],
  ["Alt A", "go to what waits for your approval"],
  ["Enter, Space", "on an action: fold and unfold it"],
  ["Alt N", "new chat"],
  ["/", "search conversations"],
  ["Alt ↑, Alt ↓", "move a waiting message that has the focus"],
  ["?", "this list"],
];

export function Keys({ onClose }: { onClose: () => void }) {
  return (
    <Dialog title="Keys" onClose={onClose}>
      <dl className="keys">
        {KEYS.map(([key, what]) => (
          <div key={key}>
            <dt>
              <kbd>{key}</kbd>
            </dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
      <div className="choices">
        <button type="button" onClick={onClose}>
          Close
        </button>
      </div>
    </Dialog>
  );
}
