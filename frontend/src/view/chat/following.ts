import { type RefObject, useCallback, useEffect, useLayoutEffect, useRef, useState } from "react";

const NEAR_END = 48;

/** Keeps a box scrolled to its end while its content grows, until somebody scrolls up. */
export function useFollowing(box: RefObject<HTMLDivElement | null>, content: RefObject<HTMLDivElement | null>, said: number) {
  const [isFollowing, setFollowing] = useState(true);
  const state = useRef({ follows: true, top: 0 });

  const toEnd = useCallback(() => {
    const one = box.current;
    if (one && state.current.follows) one.scrollTop = one.scrollHeight;
  }, [box]);
  const follow = useCallback(() => {
    state.current.follows = true;
    setFollowing(true);
    toEnd();
  }, [toEnd]);

  useLayoutEffect(() => {
    const watcher = new ResizeObserver(toEnd);
    for (const one of [box.current, content.current]) if (one) watcher.observe(one);
    return () => watcher.disconnect();
  }, [box, content, toEnd]);
  const before = useRef(said);
  useEffect(() => {
    if (said > before.current) follow();
    before.current = said;
  }, [said, follow]);
  useEffect(() => {
    const one = box.current;
    if (!one) return;
    // Only a person's own scrolling ends the following; rows that are measured move the box too.
    const leave = () => {
      if (one.scrollTop === 0) return;
      state.current.follows = false;
      setFollowing(false);
    };
    const onWheel = (event: WheelEvent) => event.deltaY < 0 && leave();
    const onKey = (event: KeyboardEvent) => {
      if (event.target !== one || !["ArrowUp", "PageUp", "Home", "End"].includes(event.key)) return;
      if (event.key === "End") follow();
      else leave();
      if (event.key !== "Home" && event.key !== "End") return;
      // The browser would glide, and measuring what it passes would stop it on its way.
      event.preventDefault();
      if (event.key === "Home") one.scrollTop = 0;
    };
    one.addEventListener("wheel", onWheel, { passive: true });
    one.addEventListener("keydown", onKey);
    return () => {
      one.removeEventListener("wheel", onWheel);
      one.removeEventListener("keydown", onKey);
    };
  }, [box, follow]);

  const onScroll = useCallback(() => {
    const one = box.current;
    if (!one) return;
    const left = one.scrollHeight - one.scrollTop - one.clientHeight;
    const isUp = one.scrollTop < state.current.top - 1;
    // At the very end the box moves up by itself when it or its content changes its height.
    if (isUp && left > 1) state.current.follows = false;
    else if (left < NEAR_END) state.current.follows = true;
    state.current.top = one.scrollTop;
    setFollowing(state.current.follows);
  }, [box]);
  return { isFollowing, onScroll, follow };
}
