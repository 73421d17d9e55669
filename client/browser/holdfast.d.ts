/**
 * One WebSocket for all tabs of a user, to a holdfast gateway (protocol holdfast.v1, client/PROTOCOL.md).
 *
 *   Tab ── port, channel or call ──▶ Hub ── Link ──▶ gateway
 *
 * A Tab is in each page: what an application holds is a Connection to it. There is one Hub for all of them, in a
 * SharedWorker, in the page of an elected leader, or in the page itself: the same class each time. The Hub has one Link,
 * the WebSocket, and for each topic a Fan: what came last, and one cursor for each tab. Nothing is queued for a tab.
 * Positions are with the tabs, and so are publishes until they are answered: any Hub may die at any time.
 *
 * Numbers in comments, as in (trap 7), name what goes wrong in browsers without the lines beside them.
 * This file is also the SharedWorker's script: see its end.
 */
/** What publish and subscriptions fail with. */
export declare class HoldfastError extends Error {
    /** One of PROTOCOL.md, section 6, or closed, denied, expired, queue_full, bad_input. */
    code: string;
    /** @param {string} code @param {string} [message] @param {{outcome?: string, id?: string, topic?: string, field?: string}} [more] */
    constructor(code: string, message?: string, more?: {
        outcome?: string;
        id?: string;
        topic?: string;
        field?: string;
    });
    name: string;
    /** Of a publish: `not_stored` is certain, `unknown` is not. @type {string | undefined} */ outcome: string | undefined;
    /** Of a publish. @type {string | undefined} */ id: string | undefined;
    /** @type {string | undefined} */ topic: string | undefined;
    /** The member that was wrong. @type {string | undefined} */ field: string | undefined;
}
export type Backoff = {
    /**
     * the first window, as long as nothing was connected (500)
     */
    base?: number;
    /**
     * the widest window (30000)
     */
    cap?: number;
    /**
     * the first window after a connection was lost, 0 for base (5000); those after it are not narrower
     */
    first?: number;
    /**
     * how long a connection has to last to begin anew with that (10000)
     */
    stable?: number;
};
export type Options = {
    /**
     * how tabs share the connection: in a SharedWorker, in an elected tab,
     * not at all; auto is the first of these that works
     */
    share?: 'auto' | 'worker' | 'leader' | 'none';
    /**
     * of the user, or the session. **Tabs with the same url and key share one connection and its
     * rights**: without a key that is everybody who logs in with this browser
     */
    key?: string;
    /**
     * credentials,
     * for when there is no cookie; a function is asked before every dial, with refresh when the last were refused
     */
    token?: string | ((how: {
        refresh: boolean;
    }) => string | null | undefined | Promise<string | null | undefined>);
    /**
     * subscribed to from the beginning
     */
    topics?: readonly string[];
    backoff?: Backoff;
    /**
     * how many messages of each topic are kept for tabs that are slower than others (1000)
     */
    ring?: number;
    /**
     * how many may be on their way to a tab (256)
     */
    window?: number;
    /**
     * where positions are kept, of up to 100 topics, so that a page goes on where
     * it stood after a reload: session is of the tab, local of all tabs, where the one stood that wrote last. Connections of one
     * page with the same url and key share them
     */
    keep?: false | 'session' | 'local';
    /**
     * of this file, for bundles: a string, a URL, or what a policy of Trusted Types has made of it
     */
    workerUrl?: any;
};
export type Message = {
    type: 'message';
    topic: string;
    /**
     * what JSON says, or a string that was none, or a Uint8Array
     */
    data: any;
    /**
     * to go on after this message
     */
    pos: string;
    /**
     * when it was stored, in milliseconds since 1970; 0 if that is not known
     */
    at: number;
    key: string;
};
export type Reset = {
    type: 'reset';
    topic: string;
    /**
     * with trimmed, lagging and floor messages are missing; with any other what was built from the messages
     * so far is void
     */
    reason: string;
    /**
     * how many, 0 if that is not known
     */
    missed: number;
    /**
     * takes the place of all before, if there is one; else undefined
     */
    snapshot: any;
    pos: string;
};
export type Ephemeral = {
    type: 'ephemeral';
    topic: string;
    data: any;
};
export type Event = Message | Reset | Ephemeral;
export type Receipt = {
    /**
     * queued: it is not stored yet. The server keeps it until it can be
     * stored, but not for ever: with the default Outbox for a minute, and not over a restart. Nothing more is said about it
     */
    outcome: 'committed' | 'duplicate' | 'queued';
    /**
     * where it is stored; not if queued
     */
    pos?: string;
    id: string;
};
export type State = 'connecting' | 'open' | 'waiting' | 'denied' | 'closed';
/**
 * @typedef {object} Options All tabs of a user should give the same; those of the first count.
 * @property {'auto' | 'worker' | 'leader' | 'none'} [share] how tabs share the connection: in a SharedWorker, in an elected tab,
 *   not at all; auto is the first of these that works
 * @property {string} [key] of the user, or the session. **Tabs with the same url and key share one connection and its
 *   rights**: without a key that is everybody who logs in with this browser
 * @property {string | ((how: {refresh: boolean}) => string | null | undefined | Promise<string | null | undefined>)} [token] credentials,
 *   for when there is no cookie; a function is asked before every dial, with refresh when the last were refused
 * @property {readonly string[]} [topics] subscribed to from the beginning
 * @property {Backoff} [backoff]
 * @property {number} [ring] how many messages of each topic are kept for tabs that are slower than others (1000)
 * @property {number} [window] how many may be on their way to a tab (256)
 * @property {false | 'session' | 'local'} [keep] where positions are kept, of up to 100 topics, so that a page goes on where
 *   it stood after a reload: session is of the tab, local of all tabs, where the one stood that wrote last. Connections of one
 *   page with the same url and key share them
 * @property {any} [workerUrl] of this file, for bundles: a string, a URL, or what a policy of Trusted Types has made of it
 *
 * @typedef {object} Message
 * @property {'message'} type
 * @property {string} topic
 * @property {any} data what JSON says, or a string that was none, or a Uint8Array
 * @property {string} pos to go on after this message
 * @property {number} at when it was stored, in milliseconds since 1970; 0 if that is not known
 * @property {string} key
 *
 * @typedef {object} Reset What follows does not follow what came before: there is no other way to miss a message.
 * @property {'reset'} type
 * @property {string} topic
 * @property {string} reason with trimmed, lagging and floor messages are missing; with any other what was built from the messages
 *   so far is void
 * @property {number} missed how many, 0 if that is not known
 * @property {any} snapshot takes the place of all before, if there is one; else undefined
 * @property {string} pos
 *
 * @typedef {object} Ephemeral
 * @property {'ephemeral'} type
 * @property {string} topic
 * @property {any} data
 *
 * @typedef {Message | Reset | Ephemeral} Event
 *
 * @typedef {object} Receipt
 * @property {'committed' | 'duplicate' | 'queued'} outcome queued: it is not stored yet. The server keeps it until it can be
 *   stored, but not for ever: with the default Outbox for a minute, and not over a restart. Nothing more is said about it
 * @property {string} [pos] where it is stored; not if queued
 * @property {string} id
 *
 * @typedef {'connecting' | 'open' | 'waiting' | 'denied' | 'closed'} State denied: the server does not want us; reauth and
 *   reconnect try once more
 */
/** Knows when somebody listens for messages: before that they are not taken. */
declare class Listened extends EventTarget {
    /** @protected */ protected live: boolean;
    /** @param {string} type @param {((e: CustomEvent) => void) | EventListenerObject | null} listener @param {boolean | AddEventListenerOptions} [options] */
    addEventListener(type: string, listener: ((e: CustomEvent) => void) | EventListenerObject | null, options?: boolean | AddEventListenerOptions): void;
    /** For its types. @param {string} type @param {((e: CustomEvent) => void) | EventListenerObject | null} listener @param {boolean | EventListenerOptions} [options] */
    removeEventListener(type: string, listener: ((e: CustomEvent) => void) | EventListenerObject | null, options?: boolean | EventListenerOptions): void;
    /** @protected */
    protected listened(): void;
}
/**
 * The reading of a topic: read it with `for await`, or listen to `message`, `reset` and `ephemeral`, whose detail is the
 * event, here or at the Connection. Until one of these is done a window of messages is held, and none is lost. Only one
 * loop reads; to leave it ends the subscription.
 */
export declare class Subscription extends Listened {
    #private;
    /** @param {any} tab @param {any} s */
    constructor(tab: any, s: any);
    /** @type {string} */
    get topic(): string;
    /** After which event the application stands: give it as `from` to go on there. Null until that is known. @type {string | null} */
    get position(): string | null;
    /** Resolves when nothing that is published from then on is missed. @type {Promise<void>} */
    get ready(): Promise<void>;
    /** @protected */
    protected listened(): void;
    close(): void;
    /** @returns {AsyncIterableIterator<Event>} */
    [Symbol.asyncIterator](): AsyncIterableIterator<Event>;
}
/**
 * Events, with what they are about in `detail`: `message`, `reset` and `ephemeral` of all subscriptions, `state`
 * ({state, in, why, code, mode, hub}: why the connection was lost, and the close code. Code 4401 is told at once when the
 * user is logged out or a token has expired; it stays until the server lets the page in again or denies it), `update` (a page of another build of this file was opened), `error` ({topic,
 * error}: a subscription has ended).
 */
export declare class Connection extends Listened {
    #private;
    /** @param {string | URL} url @param {Options} [options] @param {any} [env] for tests */
    constructor(url: string | URL, options?: Options, env?: any);
    /** @protected */
    protected listened(): void;
    /** open: the server has welcomed us. @type {State} */
    get state(): State;
    /** Without from and last, from now on; with `keep`, from where the page stood. A topic that is subscribed to already: the
     * same Subscription. @param {string} topic
     * @param {{from?: string | null, last?: number, floor?: string}} [options] from: a position; last: how many of the newest to
     *   begin with; floor: a position up to which nothing is wanted (heeded if all tabs give the same)
     * @returns {Subscription} */
    subscribe(topic: string, options?: {
        from?: string | null;
        last?: number;
        floor?: string;
    }): Subscription;
    /** @param {string} topic */
    unsubscribe(topic: string): void;
    /** Resolves when the server has it, however many connections, workers and leaders that takes, and it is stored once. Rejects
     * with a HoldfastError after a minute, or when the server refuses. @param {string} topic
     * @param {any} data a JSON value, or a Uint8Array @param {{id?: string, key?: string}} [options] @returns {Promise<Receipt>} */
    publish(topic: string, data: any, options?: {
        id?: string;
        key?: string;
    }): Promise<Receipt>;
    /** To those who are there now; it may get lost. @param {string} topic @param {any} data */
    ephemeral(topic: string, data: any): void;
    /** Asks for a new token and shows it to the server, before the old one expires or after. */
    reauth(): void;
    /** Dials anew, for all tabs. */
    reconnect(): void;
    /** For people and support: mode, state, why it was dropped last, tabs, cursors, counters. @returns {Promise<any>} */
    info(): Promise<any>;
    /** Publishes that are not answered fail. */
    close(): void;
}
/**
 * @param {string | URL} url of the gateway: ws, wss, http, https or relative to the page
 * @param {Options} [options]
 * @returns {Connection}
 */
export declare function connect(url: string | URL, options?: Options): Connection;
export {};
