"""The container: transitions of whole episodes in time order, their checks, their folder, their buffers."""
