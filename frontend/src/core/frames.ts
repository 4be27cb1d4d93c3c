/** The wire, as docs/reference/protocol.md has it. No DOM, no React here. */

export interface Cursor {
  epoch: string;
  seq: number;
}

export interface Metadata {
  streaming: boolean;
  cancelled: boolean;
  has_error: boolean;
  interrupted: boolean;
  error?: { code: string; id: string };
  model?: string;
  usage?: { input_tokens: number; output_tokens: number };
  first_token_ms?: number;
  duration_ms?: number;
  reasoning?: string;
  /** What was left out of the history that the model was given. */
  shortened?: { omitted: number; tokens: number };
  cancel?: Cancel;
}

/** How a cancelled run was stopped: `metadata.cancel` of its RUN_FINISHED. */
export interface Cancel {
  by?: string;
  reason?: string;
  took_ms: number;
  processes?: { pid: number; how: string }[];
}

export interface Action {
  id: string;
  type: string;
  position: number;
  input: Record<string, unknown>;
  output: unknown;
  status: string;
  outcome: string | null;
  started_at: string | null;
  ended_at: string | null;
  /** Code points of the message's text before the action. */
  offset: number | null;
  /** What it wrote while it ran; the newest 64 KiB. */
  live: string;
  /** Where the whole output is, when `output` is only its head and tail. */
  link: string | null;
  /** What it changed in a file, as a unified diff. */
  diff: string | null;
  exit_code: number | null;
}

/** An action that waits for a person's approval. */
export interface Interrupt {
  id: string;
  run: string;
  action: string;
  tool: string;
  args: Record<string, unknown>;
  reason: string;
  expires_at: string | null;
}

export interface Decision {
  approved: boolean;
  editedArgs?: Record<string, unknown>;
  reason?: string;
  /** Allow the tool from now on in this session. */
  always?: boolean;
}

export interface Message {
  id: string;
  session: string;
  role: string;
  content: string;
  metadata: Metadata;
  created_at: string;
  run: string | null;
  actions: Action[];
}

export interface ActiveRun {
  run: string;
  status: string;
  message: string;
  cancelRequested: boolean;
}

export interface QueueItem {
  task: string;
  version: number;
  content: string;
  by: string;
  created_at: string;
  position: number;
}

export interface State {
  messages: Message[];
  activeRun: ActiveRun | null;
  queue: QueueItem[];
  interrupts: Interrupt[];
  open: { messages: string[]; actions: string[] };
}

/** An AG-UI event: told apart by `type`; its other fields are read where they are known. */
export interface AgUiEvent {
  type: string;
  [field: string]: unknown;
}

export interface Recorded {
  seq: number;
  run: string | null;
  ts: string;
  event: AgUiEvent;
}

export interface Limits {
  frameBytes: number;
  contentBytes: number;
}

export type ServerFrame =
  | { type: "welcome"; re: string; heartbeatMs: number; limits?: Limits }
  | { type: "ack"; re: string; dup: boolean; result: Record<string, unknown>; at: Cursor | null }
  | ({ type: "snapshot"; session: string; epoch: string; seq: number; reason: string; earlier?: boolean } & State)
  | { type: "events"; session: string; epoch: string; events: Recorded[] }
  | { type: "caught_up"; session: string; epoch: string; seq: number }
  | {
      type: "error";
      re: string | null;
      code: string;
      message: string;
      field?: string;
      retryable: boolean;
      retryAfterMs?: number;
      current?: unknown;
    }
  | { type: "pong"; re: string }
  | { type: "goaway"; reason: string; reconnectAfterMs: number };

export type Command =
  | { type: "subscribe"; session: string; cursor: Cursor | null }
  | { type: "unsubscribe"; session: string }
  | { type: "send"; session: string; content: string; key: string; ifBusy: "queue" | "reject" | "interrupt" }
  | { type: "cancel"; session: string; run?: string; reason?: string }
  | { type: "approve"; session: string; run: string; key: string; decisions: (Decision & { interruptId: string })[] }
  | {
      type: "queue";
      session: string;
      op: "move" | "edit" | "remove" | "swap";
      task: string;
      version: number;
      position?: number;
      content?: string;
    };
